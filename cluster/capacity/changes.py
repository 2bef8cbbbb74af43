"""The smallest changes with which a plan fits a cluster: one of `placement`, one of the cluster. Pure.

A plan and nodes that cannot hold it flow in, changes that have been tried on paper flow out. The smallest change of
`placement` changes the fewest numbers; of several such, it leaves the groups their GPUs, then it changes them least.
The smallest change of the cluster touches the fewest machines.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, takewhile
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.capacity.cards import asking_for_cards
from cluster.capacity.matching import assign, augment, fits
from cluster.config import GroupsPlacement, LocalPlacement, OpenRlhfPlacement, PlacedGroup, PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.gpu_groups import problems
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan, plan
from cluster.role_table import base_role, openrlhf_names

PlacementChange = dict[str, int]
"""Key path in `placement` → new value."""

SEARCH_S = 5.0
"""Seconds of the processor after which the search for a change of the placement ends without a result."""
MOST_TRIED, MOST_PAIRED = 2000, 100
"""Number of changes that are tried, smallest first, and number of single changes that are combined in pairs."""
HARMLESS = ("cpus_per_rank", "threads")
"""Endings of keys whose change leaves the groups their GPUs."""
LOWERED = (*HARMLESS, ".ranks", "rollout.tensor_parallel_size", "vllm_num_engines")
_PLACEMENT: TypeAdapter[Any] = TypeAdapter(PlacementConfig)


@dataclass(frozen=True, slots=True)
class ClusterChange:
    """What a cluster needs so that the plan fits."""

    raised: tuple[tuple[Node, int], ...]
    """Nodes that need more CPUs, each with the number it then has."""
    added: tuple[Node, ...]
    """Missing nodes, with the resources that they need."""


def cluster_change(wanted: Plan, nodes: Sequence[Node], *, raising: bool) -> ClusterChange:
    """For each planned node without a machine: more CPUs for a machine (if `raising`), or a new machine.

    Planned nodes that have a machine may move to another one, so that the machine that needs only CPUs becomes idle.
    New machines are as few as possible where all planned nodes ask for the same kind of GPU.
    """
    demands, ordered = wanted.demands, sorted(nodes, key=lambda node: (node.gpus, -node.cpus))
    homes = assign(demands, ordered)
    homeless = sorted(set(range(len(demands))) - homes.keys(), key=lambda n: (-demands[n].gpus, -demands[n].cpus))
    if raising:
        asked = [demand if n in homes else replace(demand, cpus=0.0) for n, demand in enumerate(demands)]
        for number in homeless:
            augment(number, asked, ordered, homes)
    raised = [(ordered[homes[n]], math.ceil(demands[n].cpus)) for n in homeless if n in homes]
    return ClusterChange(tuple(raised), tuple(demands[n] for n in sorted(homeless) if n not in homes))


def placement_change(wanted: Plan, nodes: Sequence[Node]) -> PlacementChange | None:
    """The smallest change with which the plan fits: one of `_moves`, or two of them; None if none of these does."""
    if wanted.placement is None:
        return None
    numbers = numbers_in(wanted.placement.model_dump())

    def size(change: PlacementChange) -> tuple[int, bool, float, float]:
        harmless = all(path.endswith(HARMLESS) or path.startswith("pool") for path in change)
        steps = [abs(value / max(numbers[path], 1) - 1) for path, value in change.items()]
        return len(change), not harmless, max(steps), sum(steps)

    moves = (move for move in _moves(wanted.placement, numbers, nodes) if _concerns(move, wanted))
    single = sorted(moves, key=size)
    double = ({**one, **two} for one, two in combinations(single[:MOST_PAIRED], 2) if one.keys().isdisjoint(two))
    until = time.thread_time() + SEARCH_S
    tried = takewhile(lambda _: time.thread_time() < until, sorted((*single, *double), key=size)[:MOST_TRIED])
    return next((change for change in tried if _helps(wanted, change, nodes)), None)


def numbers_in(section: dict[str, Any], prefix: str = "") -> dict[str, int]:
    """Key path → value, of all whole numbers of a part of the configuration."""
    found: dict[str, int] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= numbers_in(value, f"{prefix}{key}.")
        elif isinstance(value, int):
            found[prefix + key] = value
    return found


def changed(placement: PlacementConfig, change: PlacementChange) -> PlacementConfig:
    """The placement with `change` applied."""
    values = placement.model_dump(exclude_unset=True) | {"type": placement.type}
    for path, value in change.items():
        *sections, key = path.split(".")
        section = values
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    made: PlacementConfig = _PLACEMENT.validate_python(values)
    return made


def _helps(wanted: Plan, change: PlacementChange, nodes: Sequence[Node]) -> bool:
    assert wanted.placement is not None
    try:
        placement = changed(wanted.placement, change)
        sound = isinstance(placement, LocalPlacement) or not problems(as_groups(placement))
        return sound and fits(asking_for_cards(plan(placement, wanted.needs), nodes), nodes)
    except (PlacementError, ValidationError):
        return False


def _concerns(move: PlacementChange, wanted: Plan) -> bool:
    """Whether a change concerns only roles that this command starts: it may not start every role of a placement."""
    used = {base_role(need.role) for need in wanted.needs}
    if isinstance(wanted.placement, GroupsPlacement):
        groups = wanted.placement.groups
        used = {name for name, group in groups.items() if used & {base_role(role) for role in group.roles}}
        return all(path.split(".")[1] in used for path in move if path.startswith("groups."))
    return not isinstance(wanted.placement, LocalPlacement) or all(path.split(".")[0] in used for path in move)


def _moves(placement: PlacementConfig, numbers: PlacementChange, nodes: Sequence[Node]) -> Iterator[PlacementChange]:
    """Candidates: a number made smaller, a pool with nodes as large as the real ones, a group on other nodes."""
    for path, now in numbers.items():
        if path.endswith(LOWERED):
            yield from ({path: value} for value in range(1, now))
        elif path.startswith("pool") and path.endswith(".gpus_per_node"):
            count = path.replace(".gpus_per_node", ".nodes")
            for per in {int(node.gpus) for node in nodes} - {0, now}:
                yield from ({path: per}, {path: per, count: -(-numbers[count] * now // per)})
    if not isinstance(placement, LocalPlacement):
        for name, group in as_groups(placement).groups.items():
            now, per = group.nodes, group.gpus_per_node
            fewer = [*((n, per) for n in range(1, now)), *((now, each) for each in range(1, per))]
            as_many = [(now * per // each, each) for each in range(1, per) if now * per % each == 0]
            for shape in (*fewer, *((n, each) for n, each in as_many if n <= len(nodes))):
                change = _reshaped(isinstance(placement, OpenRlhfPlacement), name, group, *shape)
                kept = {path: value for path, value in change.items() if numbers[path] != value}
                yield from [kept] if kept else []


def _reshaped(in_their_words: bool, name: str, group: PlacedGroup, nodes: int, per: int) -> PlacementChange:
    """The change that gives a group another shape, with as many engines as fill it."""
    if in_their_words:
        theirs = [openrlhf_names()[role] for role in group.roles]
        sizes = {f"{role}_num_nodes": nodes for role in theirs} | {f"{role}_num_gpus_per_node": per for role in theirs}
    else:
        sizes = {f"groups.{name}.nodes": nodes, f"groups.{name}.gpus_per_node": per}
    if group.engines is not None:
        key = "vllm_num_engines" if in_their_words else f"groups.{name}.engines.number"
        sizes[key] = nodes * per // group.engines.tensor_parallel_size
    return sizes
