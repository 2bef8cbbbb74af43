"""The errors between the driver and the ranks.

ClusterError
├── PlacementError       the layout asks for what the cluster does not have (the command's exit code is 2)
├── ClusterUnreachable   no cluster answers at the address, or it wants another token (exit code 2)
├── DeadlineExceeded     a wait ran out; names role, rank, node and what each rank was doing
└── RankFailure          a rank died or raised; names role, rank, node and its last log lines
"""


class Terminated(KeyboardInterrupt):
    """SIGTERM (a scheduler's, say): the run ends as it does on Ctrl-C."""


class ClusterError(RuntimeError):
    """The ranks cannot go on; the message names the culprit and the fix."""


class PlacementError(ClusterError):
    """The layout needs resources that the cluster does not have."""


class ClusterUnreachable(ClusterError):
    """No cluster answers at the address, or it requires another token."""


class DeadlineExceeded(ClusterError):
    """A wait took too long; names role, rank, node and what each rank was doing."""


class RankFailure(ClusterError):
    """A rank died or raised; names role, rank, node and its last log lines."""

    def __init__(self, message: str, *, consequence: bool = False) -> None:
        super().__init__(message)
        self.consequence = consequence
        """Whether the error looks like the consequence of another rank's failure (a broken collective)."""
