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
