"""Groups of GPUs on pools of nodes: the rules of `type: groups`, and `type: openrlhf` in its words.

A placement flows in; groups, or what is wrong with them, flow out. Pure; called by `cluster.placement.plan`, which asks
`cluster.placement.seats` who gets which GPU.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection
from typing import get_args

from cluster.config import EnginesConfig, GpuRole, GroupsPlacement, OpenRlhfPlacement, PlacedGroup, PoolConfig
from cluster.errors import PlacementError
from cluster.placement.accelerators import ACCELERATORS
from cluster.placement.seats import nodes_needed, size_text

ENGINES = "rollout"
"""The role of the vLLM engines."""

GPU_ROLES: tuple[GpuRole, ...] = get_args(GpuRole)

THEIR_NAMES: dict[str, str] = dict(zip(GPU_ROLES, ("actor", "critic", "reward", "ref"), strict=True))
"""Role → what OpenRLHF's keys begin with."""


def base_role(role: str) -> str:
    """`reward` of `reward.helpful`; any other role is its own."""
    return role.partition(".")[0]


def as_groups(placement: GroupsPlacement | OpenRlhfPlacement) -> GroupsPlacement:
    """OpenRLHF's words as ours. Raises PlacementError for sizes that cannot share GPUs."""
    if isinstance(placement, GroupsPlacement):
        return placement
    sizes = {
        role: (getattr(placement, f"{name}_num_nodes"), getattr(placement, f"{name}_num_gpus_per_node"))
        for role, name in THEIR_NAMES.items()
        if getattr(placement, f"{name}_num_nodes")
    }
    homes = _homes(placement, sizes)
    engines = EnginesConfig(number=placement.vllm_num_engines, tensor_parallel_size=placement.vllm_tensor_parallel_size)
    nodes, per_node = sizes["actor"]
    sharing = engines.number * engines.tensor_parallel_size == nodes * per_node
    if sharing or placement.colocate_all_models:
        _check_shared_engines(placement, nodes, per_node)
    groups: dict[str, PlacedGroup] = {
        home: PlacedGroup(
            pool="gpus",
            nodes=sizes[home][0],
            gpus_per_node=sizes[home][1],
            roles=tuple(role for role in GPU_ROLES if homes.get(role) == home),
            engines=engines if home == "actor" and sharing else None,
            cpus_per_rank=placement.cpus_per_rank,
        )
        for home in dict.fromkeys(homes.values())
    }
    largest = max(size for _, size in sizes.values())
    whole = placement.pool.gpus_per_node if placement.pool else largest
    if largest > whole:
        name = next(THEIR_NAMES[role] for role, (_, size) in sizes.items() if size > whole)
        raise PlacementError(
            f"placement.{name}_num_gpus_per_node={getattr(placement, f'{name}_num_gpus_per_node')} is more than "
            f"placement.pool.gpus_per_node={whole}; use {whole} and more nodes"
        )
    if not sharing:
        nodes, each = _spread_engines(engines, whole)
        groups["engines"] = PlacedGroup(
            pool="gpus", nodes=nodes, gpus_per_node=each, engines=engines, cpus_per_rank=placement.cpus_per_rank
        )
    return _placement(_pool(placement, groups, whole), groups)


Sizes = dict[str, tuple[int, int]]
"""Role → (nodes, GPUs a node), in OpenRLHF's numbers."""


def _homes(placement: OpenRlhfPlacement, sizes: Sizes) -> dict[str, str]:
    """Role → the role in whose group it lives."""
    homes = {role: role for role in sizes}
    for flag, home, guests in (
        ("colocate_all_models", "actor", ("critic", "reward", "reference")),
        ("colocate_actor_ref", "actor", ("reference",)),
        ("colocate_critic_reward", "critic", ("reward",)),
    ):
        for guest in (guest for guest in guests if getattr(placement, flag) and guest in sizes):
            if sizes[guest] != sizes[home]:
                mine, (nodes, per) = THEIR_NAMES[guest], sizes[home]
                raise PlacementError(
                    f"placement.{flag}=true puts the {guest} on the {home}'s GPUs, but {size_text(sizes[guest])} "
                    f"is not {size_text(sizes[home])}; use {mine}_num_nodes: {nodes} and {mine}_num_gpus_per_node: "
                    f"{per}, as the {home} has"
                )
            homes[guest] = homes[home]
    return homes


def _check_shared_engines(placement: OpenRlhfPlacement, nodes: int, per_node: int) -> None:
    """Engines on the actor's GPUs fill them, and each stays in one node."""
    number, width = placement.vllm_num_engines, placement.vllm_tensor_parallel_size
    if per_node % width:
        fitting = ", ".join(f"{n} (vllm_num_engines: {nodes * per_node // n})" for n in _divisors(per_node))
        raise PlacementError(
            f"placement.vllm_tensor_parallel_size={width} does not divide actor_num_gpus_per_node={per_node}, and the "
            f"engines are on the actor's GPUs, each in one node; use {fitting}"
        )
    if number * width != nodes * per_node:
        raise PlacementError(
            f"placement.colocate_all_models=true puts the engines on the actor's {nodes * per_node} GPUs, but "
            f"{number} x {width} are {number * width}; use vllm_num_engines: {nodes * per_node // width}"
        )


def _pool(placement: OpenRlhfPlacement, groups: dict[str, PlacedGroup], per_node: int) -> PoolConfig:
    """The nodes that were said, if they are enough; else as many as the groups need."""
    one = PoolConfig(nodes=1, gpus_per_node=per_node)
    used = nodes_needed(_placement(one, groups), set(groups), "gpus")
    pool = placement.pool or PoolConfig.model_construct(nodes=used, gpus_per_node=per_node)
    if pool.nodes < used:
        sizes = ", ".join(
            f"{' and '.join([*group.roles, *(['engines'] if group.engines else [])])} "
            f"{size_text((group.nodes, group.gpus_per_node))}"
            for group in groups.values()
        )
        actors = placement.actor_num_nodes * placement.actor_num_gpus_per_node
        share = f", or vllm_num_engines x vllm_tensor_parallel_size = {actors}, on the actor's" * ("engines" in groups)
        raise PlacementError(
            f"placement.pool.nodes={pool.nodes} is too few: {sizes} are {used} nodes of gpus_per_node={per_node}; use "
            f"nodes: {used}{share}"
        )
    return pool


def _placement(pool: PoolConfig, groups: dict[str, PlacedGroup]) -> GroupsPlacement:
    return GroupsPlacement(type="groups", pools={"gpus": pool}, groups=groups)


def _spread_engines(engines: EnginesConfig, per_node: int) -> tuple[int, int]:
    """(nodes, GPUs a node) for engines that have GPUs of their own: on as few nodes as can be."""
    width = engines.tensor_parallel_size
    if width > per_node:
        raise PlacementError(
            f"placement.vllm_tensor_parallel_size={width} is more than the {per_node} GPUs of a node, and an engine "
            f"stays in one node; use {' or '.join(str(n) for n in _divisors(per_node))}"
        )
    fitting = per_node // width
    nodes = next(n for n in range(1, engines.number + 1) if engines.number % n == 0 and engines.number // n <= fitting)
    return nodes, engines.number // nodes * width


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
            mend = f"did you mean {near[0]}? " if near else ""
            found.append(
                f"placement.pools.{name}.accelerator={pool_of.accelerator!r} is not known; {mend}use one of "
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
        mend = f"use {pool.gpus_per_node} and more nodes" if pool.gpus_per_node else "choose another pool"
        found.append(
            f"{key}.gpus_per_node={group.gpus_per_node} is more than the {pool.gpus_per_node} of a node of pool "
            f"{group.pool!r}; {mend}"
        )
    if group.nodes > pool.nodes:
        found.append(
            f"{key}.nodes={group.nodes} is more than the {pool.nodes} of pool {group.pool!r}; use {pool.nodes} or fewer"
        )
    return found


def _pools_that_ray_confuses(placement: GroupsPlacement) -> list[str]:
    """Cards that differ in memory alone: Ray would give a pool the other's nodes."""
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
            f"in one node); use {', '.join(map(str, _divisors(per_node)))}"
        ]
    total, have = engines.number * width, group.nodes * per_node
    if total != have:
        return [
            f"{key}.engines: {engines.number} x {width} GPUs are {total}, but the group has {have}; use number: "
            f"{have // width}"
        ]
    return []


def in_words_of(placement: GroupsPlacement | OpenRlhfPlacement, line: str) -> str:
    """A message about pools in the words of the user's file: OpenRLHF's form has one pool, without a name."""
    if isinstance(placement, GroupsPlacement):
        return line
    return line.replace("placement.pools.gpus.", "placement.pool.").replace("of pool 'gpus'", "of placement.pool")


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _names(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
