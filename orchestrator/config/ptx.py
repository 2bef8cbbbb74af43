"""The pre-training loss beside PPO's: the section `ppo.ptx`."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from orchestrator.config.data import RecordsConfig
from roles.config.section import Section


class PtxConfig(Section):
    """PPO-ptx (Ouyang et al., arXiv 2203.02155, equation 2): each optimizer step of the actor also minimises the
    cross-entropy of some rows of a data set, so that the policy does not forget what it could."""

    key: ClassVar[str] = "ppo.ptx"

    data: RecordsConfig
    """The rows: demonstrations as for `sft.data`, or plain text in a column `text`, of which all tokens count."""
    coefficient: float = Field(gt=0)
    """Factor of the loss, a mean over the tokens of an optimizer step. InstructGPT has 27.8, OpenRLHF 0.05."""
    sequences_per_mini_batch: int = Field(ge=1)
    """Rows of each optimizer step, over all ranks. InstructGPT has 8 for each response, OpenRLHF 1."""
    train_on_prompt: bool = False
    """Count all tokens but the first of a demonstration, not only its response."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longest row, in tokens."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """A longer row ends the run before it starts, is left out (counted), or loses its last tokens (counted)."""
