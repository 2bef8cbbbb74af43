"""The resources of a node: CPUs, GPUs, memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.counts import counted


@dataclass(frozen=True, slots=True)
class Node:
    """The resources that a node has, or has free."""

    name: str
    cpus: float
    gpus: float
    card: str = ""
    """Ray's name of the kind of GPU, such as `H100`; empty: no GPU, or (in a demand) any kind."""
    memory_gib: float = 0.0
    """Memory of the host in GiB; a demand asks for none."""

    def __str__(self) -> str:
        return f"{self.name}: {counted(self.cpus, 'CPU')}, {counted(self.gpus, f'{self.card} GPU'.lstrip())}"

    def holds(self, demand: Node) -> bool:
        """Whether the node has room for all of `demand`."""
        return self.cpus >= demand.cpus and self.gpus >= demand.gpus and demand.card in ("", self.card)
