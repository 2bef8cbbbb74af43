"""Assigns each planned node to a real one. Exact: a mix of nodes that fits is never refused. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cluster.placement.node import Node
from cluster.placement.plan import Plan


def fits(wanted: Plan, nodes: Sequence[Node]) -> bool:
    """Whether some assignment gives every planned node a real one of its own."""
    return wanted.nodes <= len(nodes) and len(assign(wanted.demands, nodes)) == wanted.nodes


def assign(demands: Sequence[Node], nodes: Sequence[Node]) -> dict[int, int]:
    """Index of each demand → index of its node, for as many demands as possible, largest first.

    A maximum bipartite matching by augmenting paths (Kuhn 1955). A demand that found a node keeps one (maybe another),
    so those left without a node are the smallest possible.
    """
    homes: dict[int, int] = {}
    hopeless: set[Node] = set()
    for first in sorted(range(len(demands)), key=lambda n: (demands[n].gpus, demands[n].cpus), reverse=True):
        kind = replace(demands[first], name="")
        if kind not in hopeless and not augment(first, demands, nodes, homes):
            hopeless.add(kind)  # a later one of this kind will find none either
    return homes


def augment(first: int, demands: Sequence[Node], nodes: Sequence[Node], homes: dict[int, int]) -> bool:
    """Give demand `first` a node, moving others if needed; False, and nothing changed, if there is none."""
    guests = {node: demand for demand, node in homes.items()}
    reached: dict[int, int] = {}  # node → the demand that would take it
    waiting = [first]
    for demand in waiting:
        for node in range(len(nodes)):
            if node in reached or not nodes[node].holds(demands[demand]):
                continue
            reached[node] = demand
            if node in guests:
                waiting.append(guests[node])
                continue
            left: int | None = node
            while left is not None:  # back along the path: each demand moves on and leaves its node to the one before
                mover, taken = reached[left], left
                left = homes.get(mover)
                homes[mover] = taken
            return True
    return False
