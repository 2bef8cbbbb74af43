"""The errors of the roles.

RoleError
├── Diverged               a loss or a gradient of a trained model is NaN or infinite
├── EnvironmentFailed      an environment raised, hung or answered with something else, past its retries
├── LossNotFinite          a micro-batch's loss is NaN or infinite
├── ModelError             a model folder, tokenizer or GGUF file that cannot be used
├── RewardError            a reward raised, timed out, or returned NaN or the wrong count, past its retries
├── RolloutError           an engine failed, or a sample carries a version that was not asked for
└── WeightTransferError    a push arrived corrupted, out of order or incomplete
"""


class RoleError(RuntimeError):
    """A role cannot go on; the message names the value and the fix."""


class Diverged(RoleError):
    """A loss or a gradient of a trained model is NaN or infinite."""


class EnvironmentFailed(RoleError):
    """An environment failed past its retries. Its conversation is never given a reward that it did not pay."""


class LossNotFinite(RoleError):
    """A micro-batch's loss is NaN or infinite; the weights are as they were before its optimizer step."""

    def __init__(self, step: int, items: list[int], term: int = 0) -> None:
        """`term`: which of the loss's terms has the items."""
        self.step = step
        self.items = items
        self.term = term
        super().__init__(f"the loss of items {items} in optimizer step {step + 1} is not finite")


class ModelError(RoleError):
    """A model folder, tokenizer or GGUF file that cannot be used."""


class RewardError(RoleError):
    """A reward failed past its retries. It never becomes a zero."""


class RolloutError(RoleError):
    """An engine failed, or a sample carries a version that was not asked for."""


class WeightTransferError(RoleError):
    """A push of weights arrived corrupted, out of order or incomplete."""
