"""Which GPUs of which nodes each group gets. Pure.

A placement of groups flows in, seats (group → node and GPU of each rank) flow out.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from cluster.config import GroupsPlacement
from cluster.counts import counted
from cluster.errors import PlacementError

MOST_SHOWN = 16
"""Most nodes that a message lists."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One GPU of a group."""

    pool: str
    node: int
    """Index of the node in the plan."""
    gpu: int
    """Index of the GPU on the node."""


def seats(placement: GroupsPlacement, taken: Collection[str]) -> dict[str, list[Seat]]:
    """The GPUs of each group in `taken`, by rank: node by node. Nodes are numbered as they are used.

    The widest groups choose first, each the fullest nodes that still hold it (best fit).
    Raises PlacementError where the pool's nodes are too few, or too fragmented.
    """
    free = {name: [pool.gpus_per_node] * pool.nodes for name, pool in placement.pools.items()}
    numbers: dict[tuple[str, int], int] = {}
    placed: dict[str, list[Seat]] = {}
    order = sorted(taken, key=lambda name: _by_size(placement, name))
    for name in order:
        group = placement.groups[name]
        left, whole = free[group.pool], placement.pools[group.pool].gpus_per_node
        fitting = sorted(
            (node for node in range(len(left)) if left[node] >= group.gpus_per_node), key=lambda n: left[n]
        )
        if len(fitting) < group.nodes:
            shown = ", ".join(map(str, left[:MOST_SHOWN])) + (", …" if len(left) > MOST_SHOWN else "")
            raise PlacementError(
                f"placement.pools.{group.pool}.nodes={len(left)} is too few: group {name!r} asks for "
                f"{size_text((group.nodes, group.gpus_per_node))}, but only {len(fitting)} of {len(left)} nodes have "
                f"so many left (GPUs left by node: {shown}); use nodes: "
                f"{nodes_needed(placement, taken, group.pool)}, or give the group fewer GPUs"
            )
        placed[name] = []
        for node in sorted(fitting[: group.nodes]):
            number = numbers.setdefault((group.pool, node), len(numbers))
            first = whole - left[node]
            placed[name] += [Seat(group.pool, number, first + gpu) for gpu in range(group.gpus_per_node)]
            left[node] -= group.gpus_per_node
    return placed


def nodes_needed(placement: GroupsPlacement, taken: Collection[str], pool: str) -> int:
    """Number of nodes with which the pool's groups can be seated; best fit may need one more than the fewest."""
    own = {name for name in taken if placement.groups[name].pool == pool}
    ample = placement.pools[pool].model_copy(update={"nodes": sum(placement.groups[name].nodes for name in own)})
    placed = seats(placement.model_copy(update={"pools": {pool: ample}}), own)
    return len({seat.node for seated in placed.values() for seat in seated})


def size_text(size: tuple[int, int]) -> str:
    """(nodes, GPUs per node) as text for messages."""
    return f"{size[0]} x {counted(size[1], 'GPU')}"


def _by_size(placement: GroupsPlacement, name: str) -> tuple[int, int, int]:
    """Sort key: widest groups first, then those on most nodes, then in the order of the file."""
    group = placement.groups[name]
    return -group.gpus_per_node, -group.nodes, list(placement.groups).index(name)
