"""What a node offers: CPUs, GPUs, memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Node:
    """What one node has, or has left."""

    name: str
    cpus: float
    gpus: float
    card: str = ""
    """Ray's name of its kind of GPU, such as `H100`; empty: none, or (in a demand) any."""
    memory_gib: float = 0.0
    """Memory of the host; a demand does not ask for it."""

    def __str__(self) -> str:
        return f"{self.name}: {self.cpus:g} CPUs, {self.gpus:g} {self.card + ' ' if self.card else ''}GPUs"

    def holds(self, demand: Node) -> bool:
        """Whether all of `demand` finds room here."""
        return self.cpus >= demand.cpus and self.gpus >= demand.gpus and demand.card in ("", self.card)
