"""Planned nodes on real ones, one each: exact, so that a mix that fits is never refused. Pure.

Called by `cluster.capacity.shortage` and `cluster.capacity.changes`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cluster.placement.node import Node
from cluster.placement.plan import Plan


def fits(wanted: Plan, nodes: Sequence[Node]) -> bool:
    """Whether some assignment gives every planned node a real one of its own."""
    return wanted.nodes <= len(nodes) and len(assign(wanted.demands, nodes)) == wanted.nodes


def assign(demands: Sequence[Node], nodes: Sequence[Node]) -> dict[int, int]:
    """Number of each demand → number of its node, for as many demands as possible, the largest first.

    A maximum bipartite matching by augmenting paths. A demand that found a node keeps one (maybe another), so those
    that go without are the smallest possible.
    """
    taken: dict[int, int] = {}
    hopeless: set[Node] = set()
    for index in sorted(range(len(demands)), key=lambda n: (demands[n].gpus, demands[n].cpus), reverse=True):
        kind = replace(demands[index], name="")
        if kind not in hopeless and not _augment(index, demands, nodes, taken):
            hopeless.add(kind)  # nor will a later one of its kind
    return {demand: node for node, demand in taken.items()}


def _augment(first: int, demands: Sequence[Node], nodes: Sequence[Node], taken: dict[int, int]) -> bool:
    """Give demand `first` a node, moving others where that makes room; False, and nothing changed, if none helps."""
    reached: dict[int, int] = {}  # node → the demand that would take it
    waiting = deque([first])
    while waiting:
        demand = waiting.popleft()
        for node in range(len(nodes)):
            if node in reached or not nodes[node].holds(demands[demand]):
                continue
            reached[node] = demand
            if node not in taken:
                _take(node, reached, taken)
                return True
            waiting.append(taken[node])
    return False


def _take(node: int, reached: Mapping[int, int], taken: dict[int, int]) -> None:
    """Follow the path from a free node back to the demand that began it."""
    homes = {demand: home for home, demand in taken.items()}
    at: int | None = node
    while at is not None:
        demand = reached[at]
        taken[at] = demand
        at = homes.get(demand)
