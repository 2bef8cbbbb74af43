"""The data of a training whose steps are known beforehand, as its checkpoints know it: a hash. A run goes on with the
same data alone."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import CheckpointError
from orchestrator.run.checkpoint import Checkpoint

COMPARISONS_KEY = "comparisons"
"""Of a reward model's data, in the state of its checkpoints."""


@dataclass(frozen=True, slots=True)
class LearnedData:
    """What the steps of a run learn from: `LearnedData("comparisons", "5f3a…", 48, "reward_training.pairs")`."""

    name: str
    """What it consists of; also the key of the hash in the state of a checkpoint."""
    digest: str
    steps: int
    """Number of optimizer steps that the run makes of it."""
    source: str
    """Key of the configuration that says where the data is."""

    @classmethod
    def comparisons(cls, digest: str, steps: int) -> LearnedData:
        """The pairs of a reward model."""
        return cls(COMPARISONS_KEY, digest, steps, "reward_training.pairs")

    @classmethod
    def demonstrations(cls, digest: str, steps: int) -> LearnedData:
        """The answers that a policy imitates."""
        return cls("demonstrations", digest, steps, "sft.data")

    @classmethod
    def preferences(cls, digest: str, steps: int) -> LearnedData:
        """The pairs or labelled responses of a policy."""
        return cls("preferences", digest, steps, "dpo.data")

    def check(self, checkpoint: Checkpoint) -> None:
        """Raise CheckpointError if the run cannot go on from `checkpoint`: it is of other data, or of a later step than
        the last one."""
        section = self.source.partition(".")[0]
        if checkpoint.state.get(self.name) != self.digest:
            raise CheckpointError(
                f"{checkpoint.path} was trained on other {self.name} than there are now; give {self.source} the data "
                f"that it was started with, or start anew with another {section}.output"
            )
        if checkpoint.step > self.steps:
            raise CheckpointError(
                f"{checkpoint.path} is at step {checkpoint.step} of now {self.steps}; raise {section}.epochs"
            )
