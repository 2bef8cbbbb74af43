"""The errors between the driver and the ranks.

ClusterError
├── PlacementError       the layout asks for what the cluster does not have (the command's exit code is 2)
├── ClusterUnreachable   no cluster answers at the address, or it wants another token (exit code 2)
├── NodeLost             a node of the run is lost, and no other one has room for what ran there
├── DeadlineExceeded     a wait ran out; names role, rank, node and what each rank was doing
└── RankFailure          a rank died or raised; names role, rank, node and its last log lines
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster.ranks.identity import Identity


class Terminated(KeyboardInterrupt):
    """SIGTERM (a scheduler's, say): the run ends as it does on Ctrl-C."""


class ClusterError(RuntimeError):
    """The ranks cannot go on; the message names the culprit and the fix."""

    blamed: Sequence[Identity] = ()
    """The ranks that failed or did not answer; empty if the error is nobody's fault."""


class PlacementError(ClusterError):
    """The layout needs resources that the cluster does not have."""


class ClusterUnreachable(ClusterError):
    """No cluster answers at the address, or it requires another token."""


class NodeLost(ClusterError):
    """A node does not answer any more, and what ran there has no place."""


class DeadlineExceeded(ClusterError):
    """A wait took too long; names role, rank, node and what each rank was doing."""

    def __init__(self, message: str, late: Sequence[Identity] = ()) -> None:
        super().__init__(message)
        self.blamed = late


class RankFailure(ClusterError):
    """A rank died or raised; names role, rank, node and its last log lines."""

    def __init__(
        self, message: str, *, who: Identity | None = None, exception: str = "", consequence: bool = False
    ) -> None:
        super().__init__(message)
        self.blamed = (who,) if who else ()
        self.exception = exception
        """Module and name of the exception that the role raised; empty if it raised none."""
        self.consequence = consequence
        """Whether the error looks like the consequence of another rank's failure (a broken collective)."""
