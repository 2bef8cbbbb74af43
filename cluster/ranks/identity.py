"""The identity of a rank: its role, number, node and device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Identity:
    """The name of a rank in messages."""

    role: str
    rank: int
    node: str
    log: str
    """Absolute path of its log file, on the rank's node."""
    life: int = 0
    """How often the rank has been started again."""

    @property
    def name(self) -> str:
        """`role number`, without the node."""
        return f"{self.role} {self.rank}"

    def __str__(self) -> str:
        return f"{self.role} rank {self.rank} (node {self.node})"
