"""OpenRLHF's placement keys as groups of GPUs, and messages that name OpenRLHF's keys. Pure."""

from __future__ import annotations

from cluster.config import EnginesConfig, GroupsPlacement, OpenRlhfPlacement, PlacedGroup, PoolConfig
from cluster.errors import PlacementError
from cluster.placement.gpu_assignment import nodes_needed, size_text
from cluster.placement.gpu_groups import divisors
from cluster.role_table import ACTOR, CRITIC, REFERENCE, REWARD, openrlhf_names


def as_groups(placement: GroupsPlacement | OpenRlhfPlacement) -> GroupsPlacement:
    """The same placement as groups of GPUs. Raises PlacementError for sizes that cannot share GPUs."""
    if isinstance(placement, GroupsPlacement):
        return placement
    sizes = {
        role: (getattr(placement, f"{name}_num_nodes"), getattr(placement, f"{name}_num_gpus_per_node"))
        for role, name in openrlhf_names().items()
        if getattr(placement, f"{name}_num_nodes")
    }
    homes = _homes(placement, sizes)
    engines = EnginesConfig(number=placement.vllm_num_engines, tensor_parallel_size=placement.vllm_tensor_parallel_size)
    nodes, per_node = sizes[ACTOR]
    sharing = placement.colocate_engines
    if sharing is None:
        fill = engines.number * engines.tensor_parallel_size == nodes * per_node
        sharing = fill or placement.colocate_all_models
    if sharing:
        _check_shared_engines(placement, nodes, per_node)
    groups: dict[str, PlacedGroup] = {
        home: PlacedGroup(
            pool="gpus",
            nodes=sizes[home][0],
            gpus_per_node=sizes[home][1],
            roles=tuple(role for role in homes if homes.get(role) == home),
            engines=engines if home == ACTOR and sharing else None,
            cpus_per_rank=placement.cpus_per_rank,
        )
        for home in dict.fromkeys(homes.values())
    }
    largest = max(size for _, size in sizes.values())
    whole = placement.pool.gpus_per_node if placement.pool else largest
    if largest > whole:
        name = next(openrlhf_names()[role] for role, (_, size) in sizes.items() if size > whole)
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
"""Role → (nodes, GPUs per node), in OpenRLHF's numbers."""


def _homes(placement: OpenRlhfPlacement, sizes: Sizes) -> dict[str, str]:
    """Role → the role whose group it shares."""
    homes = {role: role for role in sizes}
    for flag, home, guests in (
        ("colocate_all_models", ACTOR, tuple(role for role in sizes if role != ACTOR)),
        ("colocate_actor_ref", ACTOR, (REFERENCE,)),
        ("colocate_critic_reward", CRITIC, (REWARD,)),
    ):
        for guest in (guest for guest in guests if getattr(placement, flag) and guest in sizes and home in sizes):
            if sizes[guest] != sizes[home]:
                mine, (nodes, per) = openrlhf_names()[guest], sizes[home]
                raise PlacementError(
                    f"placement.{flag}=true puts the {guest} on the {home}'s GPUs, but {size_text(sizes[guest])} "
                    f"is not {size_text(sizes[home])}; use {mine}_num_nodes: {nodes} and {mine}_num_gpus_per_node: "
                    f"{per}, as the {home} has"
                )
            homes[guest] = homes[home]
    return homes


def _check_shared_engines(placement: OpenRlhfPlacement, nodes: int, per_node: int) -> None:
    """Raise PlacementError unless engines on the actor's GPUs fill them, and each engine is in one node."""
    number, width = placement.vllm_num_engines, placement.vllm_tensor_parallel_size
    if per_node % width:
        fitting = ", ".join(f"{n} (vllm_num_engines: {nodes * per_node // n})" for n in divisors(per_node))
        raise PlacementError(
            f"placement.vllm_tensor_parallel_size={width} does not divide actor_num_gpus_per_node={per_node}, and the "
            f"engines are on the actor's GPUs, each in one node; use {fitting}"
        )
    if number * width != nodes * per_node:
        flag = "colocate_engines" if placement.colocate_engines else "colocate_all_models"
        raise PlacementError(
            f"placement.{flag}=true puts the engines on the actor's {nodes * per_node} GPUs, but "
            f"{number} x {width} are {number * width}; use vllm_num_engines: {nodes * per_node // width}"
        )


def _pool(placement: OpenRlhfPlacement, groups: dict[str, PlacedGroup], per_node: int) -> PoolConfig:
    """The nodes of `placement.pool`, if they are enough; without it, as many nodes as the groups need."""
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
    """(nodes, GPUs per node) for engines that have GPUs of their own: on as few nodes as possible."""
    width = engines.tensor_parallel_size
    if width > per_node:
        raise PlacementError(
            f"placement.vllm_tensor_parallel_size={width} is more than the {per_node} GPUs of a node, and an engine "
            f"stays in one node; use {' or '.join(str(n) for n in divisors(per_node))}"
        )
    fitting = per_node // width
    nodes = next(n for n in range(1, engines.number + 1) if engines.number % n == 0 and engines.number // n <= fitting)
    return nodes, engines.number // nodes * width


def in_words_of(placement: GroupsPlacement | OpenRlhfPlacement, line: str) -> str:
    """A message about pools in the words of the user's file: OpenRLHF's form has one pool, without a name."""
    if isinstance(placement, GroupsPlacement):
        return line
    return line.replace("placement.pools.gpus.", "placement.pool.").replace("of pool 'gpus'", "of placement.pool")
