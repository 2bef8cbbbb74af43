"""What a PPO run reads before it starts. Pure."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.data.demonstrations import PtxData
from orchestrator.data.prompts import Questions


class PpoData(NamedTuple):
    """The data of a PPO run: `PpoData(training, heldout={})` has neither evaluations nor a pre-training loss."""

    training: Questions
    """The prompts to train on."""
    heldout: dict[str, Questions]
    """The prompts to evaluate on, by the names of their sets (of `prompts.heldout`: empty); none: no evaluations."""
    ptx: PtxData | None = None
    """The rows of the pre-training loss; None without one."""

    @property
    def summary(self) -> str:
        """For the user: what was read from where, a line each."""
        prompts = [f"{read.summary} ({read.where})" for read in (self.training, *self.heldout.values())]
        return "\n".join([*prompts, self.ptx.summary] if self.ptx else prompts)
