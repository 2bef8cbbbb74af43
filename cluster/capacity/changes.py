"""The smallest changes with which a plan fits a cluster: one of `placement`, one of the cluster. Pure.

A plan and nodes that cannot hold it flow in, changes that have been tried on paper flow out. Called by
`cluster.capacity.shortage`, which puts them into words. Smallest is, of `placement`: the fewest changed numbers, of as
many what leaves the groups their GPUs, then the smallest relative change; of the cluster: the fewest machines touched,
of as many those that are there before new ones.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from cluster.capacity.matching import fits
from cluster.config import GroupConfig, GroupsPlacement, LocalPlacement, OpenRlhfPlacement, PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.gpu_groups import problems
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan, RoleNeed, plan
from cluster.role_table import ENGINES, openrlhf_names

PlacementChange = dict[str, int]
"""Key path in `placement` → its new value."""

MOST_TRIED, MOST_PAIRED = 2000, 100
"""So many changes are tried, smallest first; so many single ones in pairs."""
SEARCH_S = 5.0
"""A shortage is told soon, if need be without a change of the placement."""
MACHINE, NEW = 1e12, 1e8
"""What touching a machine costs, and what a new one costs more, in CPUs."""
_PLACEMENT: TypeAdapter[Any] = TypeAdapter(PlacementConfig)


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """What the cluster lacks."""

    raised: tuple[tuple[Node, int], ...]
    """Nodes that need more CPUs, each with how many it then has."""
    added: tuple[Node, ...]
    """Nodes that are missing, as large as they have to be."""


def placement_change(wanted: Plan, nodes: Sequence[Node]) -> PlacementChange | None:
    """The smallest change of one or two settings with which the plan fits; None if none of ours does."""
    if wanted.placement is None:
        return None
    values = wanted.placement.model_dump()
    single = sorted(_moves(wanted.placement, wanted.needs, nodes), key=lambda change: _size(change, values))
    double = [{**one, **two} for one, two in combinations(single[:MOST_PAIRED], 2) if one.keys().isdisjoint(two)]
    candidates = sorted((*single, *double), key=lambda change: _size(change, values))[:MOST_TRIED]
    until = time.monotonic() + SEARCH_S
    tried = takewhile(lambda _: time.monotonic() < until, candidates)
    return next((change for change in tried if _helps(wanted, change, nodes)), None)


def changed(placement: PlacementConfig, change: PlacementChange) -> PlacementConfig:
    """The placement with other numbers."""
    values = placement.model_dump(exclude_unset=True) | {"type": placement.type}
    for path, value in change.items():
        *sections, key = path.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    made: PlacementConfig = _PLACEMENT.validate_python(values)
    return made


def value_of(placement: PlacementConfig, path: str) -> int:
    """What stands at a key path now."""
    return _at(placement.model_dump(), path)


def cluster_change(wanted: Plan, nodes: Sequence[Node], *, raising: bool) -> ClusterChange:
    """The fewest machines that need more CPUs (only if `raising`) or have to be added."""
    demands = wanted.demands
    costs = np.full((len(demands), len(nodes) + len(demands)), math.inf)
    for row, demand in enumerate(demands):
        for column, node in enumerate(nodes):
            if node.holds(demand):
                costs[row, column] = 0
            elif raising and replace(node, cpus=demand.cpus).holds(demand):
                costs[row, column] = MACHINE + demand.cpus - node.cpus
        costs[row, len(nodes) + row] = MACHINE + NEW + 100 * demand.gpus + demand.cpus
    homes = list(enumerate(_cheapest(np.minimum(costs, 1e15))))
    return ClusterChange(
        tuple(
            (nodes[home], math.ceil(demands[row].cpus))
            for row, home in homes
            if home < len(nodes) and not nodes[home].holds(demands[row])
        ),
        tuple(demands[row] for row, home in homes if home >= len(nodes)),
    )


def _helps(wanted: Plan, change: PlacementChange, nodes: Sequence[Node]) -> bool:
    assert wanted.placement is not None
    try:
        placement = changed(wanted.placement, change)
        sound = isinstance(placement, LocalPlacement) or not problems(as_groups(placement))
        return sound and fits(plan(placement, wanted.needs), nodes)
    except (PlacementError, ValidationError):
        return False


def _size(change: PlacementChange, values: dict[str, Any]) -> tuple[int, bool, float, float]:
    harmless = all(path.endswith(("cpus_per_rank", "threads")) or path.startswith("pool") for path in change)
    steps = [abs(value / _at(values, path) - 1) for path, value in change.items()]
    return len(change), not harmless, max(steps), sum(steps)


def _at(values: dict[str, Any], path: str) -> int:
    at: Any = values
    for key in path.split("."):
        at = at[key]
    return int(at)


def _moves(placement: PlacementConfig, needs: Sequence[RoleNeed], nodes: Sequence[Node]) -> Iterator[PlacementChange]:
    """Each setting made smaller, each group's GPUs spread over more nodes, and pools as large as the real nodes."""
    with_model = {need.role for need in needs if need.workers is None}
    if isinstance(placement, LocalPlacement):
        for role, group in placement:
            if isinstance(group, GroupConfig) and role in {need.role for need in needs}:
                keys = ("ranks", "threads", "tensor_parallel_size") if role in with_model else ("threads",)
                for key in (key for key in keys if hasattr(group, key)):
                    yield from ({f"{role}.{key}": value} for value in range(1, getattr(group, key)))
        return
    groups = as_groups(placement)
    sizes = sorted({int(node.gpus) for node in nodes if node.gpus})
    if isinstance(placement, OpenRlhfPlacement):
        yield from ({"cpus_per_rank": value} for value in range(1, placement.cpus_per_rank))
        yield from ({"vllm_num_engines": value} for value in range(1, placement.vllm_num_engines))
    for name, pool in groups.pools.items() if not isinstance(placement, OpenRlhfPlacement) or placement.pool else ():
        key = f"pools.{name}" if isinstance(placement, GroupsPlacement) else "pool"
        for per in (size for size in sizes if size != pool.gpus_per_node):
            yield {f"{key}.gpus_per_node": per}
            yield {f"{key}.gpus_per_node": per, f"{key}.nodes": -(-pool.nodes * pool.gpus_per_node // per)}
    for name, group in groups.groups.items():
        if with_model & {*group.roles, *([ENGINES] if group.engines else [])}:
            if isinstance(placement, GroupsPlacement):
                yield from ({f"groups.{name}.cpus_per_rank": value} for value in range(1, group.cpus_per_rank))
            for count, per in _shapes(group.nodes, group.gpus_per_node, len(nodes)):
                yield from _reshaped(placement, groups, name, count, per)


def _shapes(nodes: int, per: int, most: int) -> Iterator[tuple[int, int]]:
    """(nodes, GPUs a node): less of one, or as many GPUs on more nodes."""
    yield from ((fewer, per) for fewer in range(1, nodes))
    yield from ((nodes, fewer) for fewer in range(1, per))
    total = nodes * per
    yield from ((total // each, each) for each in range(1, per) if total % each == 0 and total // each <= most)


def _reshaped(
    placement: GroupsPlacement | OpenRlhfPlacement, groups: GroupsPlacement, name: str, nodes: int, per: int
) -> Iterator[PlacementChange]:
    """A group with other numbers; its engines fill it as before."""
    group = groups.groups[name]
    if isinstance(placement, OpenRlhfPlacement):
        theirs = [openrlhf_names()[role] for role in group.roles]
        change = {f"{role}_num_nodes": nodes for role in theirs} | {f"{role}_num_gpus_per_node": per for role in theirs}
        key = "vllm_num_engines"
    else:
        change = {f"groups.{name}.nodes": nodes, f"groups.{name}.gpus_per_node": per}
        key = f"groups.{name}.engines.number"
    if group.engines is not None:
        change[key] = nodes * per // group.engines.tensor_parallel_size
    values = placement.model_dump()
    kept = {path: value for path, value in change.items() if _at(values, path) != value}
    if kept and all(kept.values()):
        yield kept


def _cheapest(costs: np.ndarray[Any, Any]) -> list[int]:
    """Column of each row at the least total cost: the Hungarian method, by shortest augmenting paths."""
    rows, columns = costs.shape
    of_row, of_column = np.zeros(rows + 1), np.zeros(columns + 1)  # potentials; number 0 stands for "none"
    owner = np.zeros(columns + 1, dtype=int)
    for row in range(1, rows + 1):
        owner[0], at = row, 0
        least, before = np.full(columns + 1, math.inf), np.zeros(columns + 1, dtype=int)
        seen = np.zeros(columns + 1, dtype=bool)
        while owner[at]:
            seen[at] = True
            reduced = costs[owner[at] - 1] - of_row[owner[at]] - of_column[1:]
            better = ~seen[1:] & (reduced < least[1:])
            least[1:][better], before[1:][better] = reduced[better], at
            following = int(np.argmin(np.where(seen, math.inf, least)))
            step = least[following]
            of_row[owner[seen]] += step
            of_column[seen] -= step
            least[~seen] -= step
            at = following
        while at:
            owner[at], at = owner[before[at]], int(before[at])
    homes = [0] * rows
    for column in range(1, columns + 1):
        if owner[column]:
            homes[owner[column] - 1] = column - 1
    return homes
