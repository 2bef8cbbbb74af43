"""The driver's exceptions. Those of the other layers are in `roles.errors` and `cluster.errors`.

TetrarchError            the run failed (exit code 1)
├── ConfigError          the configuration or the data it names is wrong (exit code 2); nothing was started
├── CheckpointError      a checkpoint is missing, broken or belongs to another run
├── NotFinite            a role answered with NaN or infinity; the batch is kept
├── LabellingStopped     the budget is spent or the judge is down; what was labelled is kept
├── FileNotWritten       a file that is written while the run goes on could not be; a checkpoint is saved
├── WeightsDiffer        the engines do not sample from the trainer's weights; the batch is kept
├── RewardRestarted      a reward that serves has failed and is up again; what it was asked has no scores
├── RollBack             a rule of the configuration sends the run back to an earlier checkpoint
└── StopTraining         a rule of the configuration ends the run after a step (exit code 4); a checkpoint is saved
"""


class TetrarchError(RuntimeError):
    """The run failed; the message names the value and the fix."""


class ConfigError(TetrarchError):
    """The configuration, or a file it names, is wrong; nothing was started."""


class CheckpointError(TetrarchError):
    """A checkpoint is missing, broken or belongs to another run."""


class NotFinite(TetrarchError):
    """The role `role` answered with NaN or infinity."""

    def __init__(self, role: str, message: str) -> None:
        super().__init__(message)
        self.role = role

    def __reduce__(self) -> tuple[type[TetrarchError], tuple[str, str]]:
        """A keeper answers with one: an exception by itself is made anew of its message alone."""
        return type(self), (self.role, str(self))


class WeightsDiffer(TetrarchError):
    """The engines do not sample from the trainer's weights."""


class FileNotWritten(TetrarchError):
    """A file that is written while the run goes on could not be written."""


class LabellingStopped(TetrarchError):
    """The budget is spent, or the judge is down; what was labelled is kept."""


class RewardRestarted(TetrarchError):
    """A reward that serves has failed and is up again; what it was asked has no scores."""


class RollBack(TetrarchError):
    """The rule `rule` has fired in step `at`: the run goes back to a checkpoint of step `good` or before."""

    def __init__(self, message: str, rule: str, at: int, good: int) -> None:
        super().__init__(message)
        self.rule, self.at, self.good = rule, at, good


class StopTraining(TetrarchError):
    """A rule of the configuration ends the run after a step; a checkpoint is saved."""
