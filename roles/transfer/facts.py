"""What the trainer's side of a push needs to know of the engines, and how it calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

TransferBackend = Literal["gloo", "nccl", "ipc"]
ENGINE_NAME = "TETRARCH_ENGINE"
"""Variable of the environment of an engine's processes: a name that no other engine has."""


class EngineClient(Protocol):
    """Calls all rollout engines at once."""

    @property
    def deadline_s(self) -> float:
        """Seconds that a call waits for its answers."""

    def call(self, method_name: str, *args: Any) -> list[Any]:
        """Call a method of `RolloutEngine` on each engine, wait, and return the answers by engine."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the trainer's side of a push must know about one engine."""

    index: int
    """Index of the engine."""
    workers: int
    """Number of the engine's processes; each joins the transfer group."""
    dtype: str
    """Name of the dtype of the engine's weights, in which they are sent."""
    backend: TransferBackend
