"""The driver's state of a PPO run between two steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from orchestrator.data.demonstrations import PtxSource
from orchestrator.data.prompts import PromptSource
from orchestrator.errors import CheckpointError
from orchestrator.groups.canary import Canary
from orchestrator.ppo.kl import KlController
from orchestrator.ppo.scores import RunningScale


@dataclass(slots=True)
class TrainState:
    """The driver's state that changes from step to step; all of it is in every checkpoint."""

    prompts: PromptSource
    kl: KlController
    scale: RunningScale = field(default_factory=RunningScale)
    """Running scale of the scores."""
    value_scale: RunningScale = field(default_factory=RunningScale)
    """Running scale of the returns, if the critic's targets are normalised."""
    canary: Canary = field(default_factory=Canary)
    """Check that the engines have the actor's weights."""
    warm_at: int | None = None
    """The first step in which the actor is trained; None while the critic warms up."""
    ptx: PtxSource | None = None
    """Rows of the pre-training loss; None without one."""
    step: int = 0
    """Number of PPO steps done."""
    version: int = 0
    """Version of the actor's weights; the engines must have the same."""
    samples: int = 0
    """Number of responses trained on so far."""

    _COUNTERS: ClassVar = ("step", "version", "samples", "warm_at")
    _PARTS: ClassVar = ("prompts", "kl", "scale", "value_scale", "canary")

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        return {
            **{name: getattr(self, name) for name in self._COUNTERS},
            **{name: getattr(self, name).state_dict() for name in self._parts},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of `state_dict`. Raises CheckpointError if one is missing."""
        missing = [name for name in (*self._COUNTERS, *self._parts) if name not in state]
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {', '.join(missing)}: another version of Tetrarch has written it; resume with "
                "that one, or start anew with another run_dir"
            )
        for name in self._COUNTERS:
            setattr(self, name, state[name])
        for name in self._parts:
            getattr(self, name).load_state_dict(state[name])

    @property
    def _parts(self) -> tuple[str, ...]:
        return self._PARTS if self.ptx is None else (*self._PARTS, "ptx")
