"""The real nodes of a plan's nodes: a placement group that Ray has granted flows in, nodes with their cards flow out;
once more after a node of it is lost."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.capacity.matching import fits
from cluster.capacity.shortage import WAIT_TOLD_S, describe_shortage, describe_wait, waited
from cluster.errors import NodeLost, PlacementError
from cluster.placement.plan import Plan
from cluster.ranks.worker import gpu_ids
from cluster.runtime.living_nodes import living_nodes

NOTICED_S = 60.0
"""Seconds in which Ray notices that a node is lost which does not answer any more."""
NODE_ANSWER_S = 3.0
"""Seconds in which a node must accept a connection."""
NODE_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class GrantedNode:
    """The real node of a planned one."""

    name: str
    id: str
    gpus: list[str]
    """Names of the GPUs of our bundle on the node, in order."""


def strategy_of(group: PlacementGroup, node: int) -> PlacementGroupSchedulingStrategy:
    """Ray's strategy that places a process on the planned node of that number."""
    return PlacementGroupSchedulingStrategy(group, node)


def granted_nodes(group: PlacementGroup, plan: Plan, deadline_s: float) -> list[GrantedNode]:
    """The real node of each planned one. PlacementError if they do not say their cards within `deadline_s`."""
    names = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    homes = placement_group_table(group)["bundles_to_node_id"]
    gpus = _gpu_ids(group, plan, range(plan.nodes), deadline_s)
    return [GrantedNode(names[homes[n]], homes[n], gpus[n]) for n in range(plan.nodes)]


def granted_again(
    group: PlacementGroup,
    plan: Plan,
    before: Sequence[GrantedNode],
    needed: Collection[int],
    *,
    bound: bool,
    deadline_s: float,
    tell: Callable[[str], None],
) -> list[GrantedNode]:
    """The real nodes now: Ray puts what ran on a lost node on another one that has room. NodeLost if none has.

    Args:
        needed: planned nodes on which something is started again; the others stay as they are.
        bound: whether Ray may use no other real nodes than those before.
        tell: shows the user what is waited for, at once and then every `WAIT_TOLD_S` seconds.
    """
    lost = _lost({before[n].id for n in needed}, tell)
    moved = [n for n in sorted(needed) if before[n].id in lost]
    if not moved:
        return list(before)
    names = ", ".join(f"node {name}" for name in dict.fromkeys(before[n].name for n in moved))
    if bound:
        raise NodeLost(
            f"{names} is lost, and what ran there cannot move: Ray found no room for the run by itself, so that each "
            "of its parts was bound to a node"
        )
    living = living_nodes(free=False)
    if not fits(plan, living):
        shortage = describe_shortage(plan, living)
        raise NodeLost(f"{names} is lost, and no other one can hold what ran there: {shortage}")
    others = {node.id for n, node in enumerate(before) if n not in moved}
    began, told = time.monotonic(), -math.inf
    while not _moved(group, moved):
        now = time.monotonic()
        spent = now - began
        if spent > deadline_s:
            shortage = describe_shortage(plan, living_nodes(free=True), busy=True)
            raise NodeLost(f"{names} is lost, and no other one had room within {deadline_s:g} s: {shortage}")
        if now - told >= WAIT_TOLD_S:
            told, free = now, living_nodes(free=True, but=others)
            tell(f"{names} is lost: {describe_wait(plan, free, moved)} {waited(spent, deadline_s - spent)}")
        time.sleep(NODE_POLL_S)
    names_now = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes()}
    homes, gpus = placement_group_table(group)["bundles_to_node_id"], _gpu_ids(group, plan, moved, deadline_s)
    again = {n: GrantedNode(names_now[homes[n]], homes[n], gpus[n]) for n in moved}
    return [again.get(n, node) for n, node in enumerate(before)]


def _lost(ids: Collection[str], tell: Callable[[str], None]) -> set[str]:
    """Those of these nodes that are lost. Ray notices seconds after a node's processes have ended; one that it has not
    given up within NOTICED_S lives, however slowly it answers."""
    until, silent, told = time.monotonic() + NOTICED_S, set(ids), False
    with ThreadPoolExecutor(max(len(silent), 1)) as threads:
        while True:
            nodes = {node["NodeID"]: node for node in ray.nodes()}
            dead = {own for own in ids if own not in nodes or not nodes[own]["Alive"]}
            asked = sorted(silent - dead)
            answers = threads.map(_answers, [nodes[own] for own in asked])
            silent = {own for own, answer in zip(asked, answers, strict=True) if not answer}
            if not silent or time.monotonic() > until:
                return dead
            if not told:
                names = ", ".join(f"node {nodes[own]['NodeManagerHostname']}" for own in sorted(silent))
                tell(f"{names} does not answer: Ray is given {NOTICED_S:.0f} s to notice that it is lost")
                told = True
            time.sleep(NODE_POLL_S)


def _answers(node: Mapping[str, Any]) -> bool:
    """Whether Ray's process on the node accepts a connection."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=NODE_ANSWER_S).close()
    except OSError:
        return False
    return True


def _moved(group: PlacementGroup, moved: Collection[int]) -> bool:
    """Whether Ray has put these planned nodes on living ones."""
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    table = placement_group_table(group)
    return table["state"] == "CREATED" and all(table["bundles_to_node_id"].get(n) in living for n in moved)


def _gpu_ids(group: PlacementGroup, plan: Plan, nodes: Collection[int], deadline_s: float) -> dict[int, list[str]]:
    """Planned node → names of the GPUs of its bundle on the real one."""
    counts = {node: int(plan.demand(node).gpus) for node in nodes}
    asked = {
        node: gpu_ids().options(num_gpus=count, scheduling_strategy=strategy_of(group, node)).remote()
        for node, count in counts.items()
        if count
    }
    try:
        answers = dict(zip(asked, ray.get(list(asked.values()), timeout=deadline_s), strict=True))
    except GetTimeoutError:
        raise PlacementError(
            f"the nodes were granted, but no process started on them within {deadline_s:g} s; see Ray's logs"
        ) from None
    return {node: answers.get(node, []) for node in nodes}
