"""Groups of GPUs on pools of nodes: the rules of `type: groups`, and `type: openrlhf` under OpenRLHF's names.

A placement flows in; groups, or what is wrong with them, flow out. Pure.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection

from cluster.config import EnginesConfig, GroupsPlacement, PlacedGroup, PoolConfig
from cluster.counts import counted
from cluster.errors import PlacementError
from cluster.placement.accelerators import ACCELERATORS
from cluster.role_table import ENGINES, base_role


def group_of(placement: GroupsPlacement, role: str) -> str:
    """The group in which a role (or the engines) lives. Raises PlacementError if there is none, or more than one."""
    homes = _homes_of(placement, role) or _homes_of(placement, base_role(role))
    if not homes:
        what = "vLLM engines" if role == ENGINES else f"the role {role!r}"
        key = "engines: {number: …}" if role == ENGINES else f"roles: [{role}]"
        raise PlacementError(
            f"no group of placement.groups has {what}; add `{key}` to one of {_names(placement.groups)}"
        )
    if len(homes) > 1:
        raise PlacementError(_several(homes, role))
    return homes[0]


def problems(placement: GroupsPlacement) -> list[str]:
    """What is wrong within single groups, one line each; empty if nothing is."""
    found = []
    for name, pool_of in placement.pools.items():
        if pool_of.accelerator is not None and pool_of.accelerator not in ACCELERATORS:
            near = difflib.get_close_matches(pool_of.accelerator, ACCELERATORS, n=1, cutoff=0.3)
            fix = f"did you mean {near[0]}? " if near else ""
            found.append(
                f"placement.pools.{name}.accelerator={pool_of.accelerator!r} is not known; {fix}use one of "
                f"{_names(ACCELERATORS)}; or leave it out and say gpu_memory_gib"
            )
    found += _pools_that_ray_confuses(placement)
    for name, group in placement.groups.items():
        key = f"placement.groups.{name}"
        pool = placement.pools.get(group.pool)
        if pool is None:
            found.append(f"{key}.pool={group.pool!r} is not in placement.pools; use {_names(placement.pools)}")
            continue
        too_large = _too_large(key, group, pool)
        found += too_large
        if not group.roles and group.engines is None:
            found.append(f"{key} has neither roles nor engines; give it some, or delete it")
        double = [role for role, count in Counter(group.roles).items() if count > 1]
        if double:
            found.append(f"{key}.roles names {', '.join(double)} twice; once is enough")
        if group.engines is not None and not too_large:
            found += _engine_problems(key, group, group.engines)
    for role in dict.fromkeys([*(role for group in placement.groups.values() for role in group.roles), ENGINES]):
        homes = _homes_of(placement, role)
        if len(homes) > 1:
            found.append(_several(homes, role))
    return found


def _homes_of(placement: GroupsPlacement, role: str) -> list[str]:
    return [
        name
        for name, group in placement.groups.items()
        if (group.engines is not None if role == ENGINES else role in group.roles)
    ]


def _several(homes: Collection[str], role: str) -> str:
    what = "vLLM engines" if role == ENGINES else f"the role {role!r}"
    key = "engines" if role == ENGINES else "roles"
    return f"{' and '.join(f'placement.groups.{name}.{key}' for name in homes)} each have {what}; leave it in one"


def _too_large(key: str, group: PlacedGroup, pool: PoolConfig) -> list[str]:
    found = []
    if group.gpus_per_node > pool.gpus_per_node:
        fix = f"use {pool.gpus_per_node} and more nodes" if pool.gpus_per_node else "choose another pool"
        found.append(
            f"{key}.gpus_per_node={group.gpus_per_node} is more than the {pool.gpus_per_node} of a node of pool "
            f"{group.pool!r}; {fix}"
        )
    if group.nodes > pool.nodes:
        found.append(
            f"{key}.nodes={group.nodes} is more than the {pool.nodes} of pool {group.pool!r}; use {pool.nodes} or fewer"
        )
    return found


def _pools_that_ray_confuses(placement: GroupsPlacement) -> list[str]:
    """Pools whose cards differ only in memory: Ray could give one pool the other's nodes."""
    asked: dict[str, dict[str, str]] = {}
    for name, pool in placement.pools.items():
        if pool.accelerator in ACCELERATORS:
            asked.setdefault(ACCELERATORS[pool.accelerator].ray_name, {})[pool.accelerator] = name
    return [
        f"pools {_names(by_card.values())} have {_names(by_card)}, which Ray both calls {card} and cannot tell apart; "
        f"give them the smaller one, {min(by_card, key=lambda name: ACCELERATORS[name].memory_gib)}"
        for card, by_card in asked.items()
        if len(by_card) > 1
    ]


def _engine_problems(key: str, group: PlacedGroup, engines: EnginesConfig) -> list[str]:
    width, per_node = engines.tensor_parallel_size, group.gpus_per_node
    if per_node % width:
        return [
            f"{key}.engines.tensor_parallel_size={width} does not divide its gpus_per_node={per_node} (an engine stays "
            f"in one node); use {', '.join(map(str, divisors(per_node)))}"
        ]
    total, have = engines.number * width, group.nodes * per_node
    if total != have:
        return [
            f"{key}.engines: {engines.number} x {counted(width, 'GPU')} are {total}, but the group has {have}; use "
            f"number: {have // width}"
        ]
    return []


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
