"""What the trainer's side of a push needs to know of the engines, and how it calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    pass


TransferBackend = Literal["gloo", "nccl", "ipc"]


class EngineClient(Protocol):
    """Reaches every rollout engine at once."""

    @property
    def deadline_s(self) -> float:
        """How long it waits for an answer."""

    def call(self, method_name: str, *args: Any) -> list[Any]:
        """Call a method of `RolloutEngine` on each engine, wait, and return the answers by engine."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the trainer must know of one engine."""

    index: int
    """Which engine."""
    workers: int
    """Its processes: each joins the transfer group."""
    dtype: str
    """Name of the dtype of its weights; the wire has the same."""
    backend: TransferBackend
