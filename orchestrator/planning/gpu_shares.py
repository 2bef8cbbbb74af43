"""Every way to put roles into groups and to share out the GPUs of the pools among these. Pure.

A placement with pools and the roles flow in, placements with other groups flow out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.config import EnginesConfig, GroupsPlacement, PlacedGroup, PoolConfig
from cluster.role_table import ENGINES

MOST_LOTS = 8
"""Most lots into which the nodes of a pool are divided."""


def structures(placement: GroupsPlacement, roles: Sequence[str]) -> Iterator[GroupsPlacement]:
    """Every placement of `roles` into such shares that uses all GPUs of the pools."""
    for groups in _partitions(list(roles)):
        for shares in _shared_out(len(groups), placement.pools):
            widths = next(per for own, (_, _, per) in zip(groups, shares, strict=True) if ENGINES in own)
            for width in (n for n in range(1, widths + 1) if widths % n == 0):
                placed = {
                    "-".join(own): PlacedGroup(
                        pool=pool,
                        nodes=nodes,
                        gpus_per_node=per,
                        roles=tuple(role for role in own if role != ENGINES),
                        engines=EnginesConfig(number=nodes * per // width, tensor_parallel_size=width)
                        if ENGINES in own
                        else None,
                    )
                    for own, (pool, nodes, per) in zip(groups, shares, strict=True)
                }
                yield placement.model_copy(update={"groups": placed})


def with_cpus(placement: GroupsPlacement, cpus: int) -> GroupsPlacement:
    """The placement with that many CPUs for each rank."""
    groups = {name: group.model_copy(update={"cpus_per_rank": cpus}) for name, group in placement.groups.items()}
    return placement.model_copy(update={"groups": groups})


def _partitions(roles: list[str]) -> Iterator[list[list[str]]]:
    """All ways to put roles into groups."""
    if not roles:
        yield []
        return
    first, *others = roles
    for groups in _partitions(others):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


Share = tuple[str, int, int]
"""(pool, nodes, GPUs per node)."""


def _shared_out(groups: int, pools: dict[str, PoolConfig]) -> Iterator[list[Share]]:
    """All ways to give each of `groups` groups a share, with no GPU left over."""
    left = {name: pool.nodes * pool.gpus_per_node for name, pool in pools.items() if pool.gpus_per_node}
    options = [(name, *share) for name in left for share in _shares(pools[name])]

    def fill(number: int, left: dict[str, int]) -> Iterator[list[Share]]:
        if number == 0:
            if not any(left.values()):
                yield []
            return
        for name, nodes, per in options:
            if nodes * per <= left[name]:
                for others in fill(number - 1, {**left, name: left[name] - nodes * per}):
                    yield [(name, nodes, per), *others]

    yield from fill(groups, left)


def _shares(pool: PoolConfig) -> list[tuple[int, int]]:
    """Shares of a pool as (nodes, GPUs per node): whole nodes, in lots if there are many; a half, a quarter … of a
    node."""
    lot = -(-pool.nodes // MOST_LOTS)
    # One group gets the nodes that the lots leave over.
    whole = sorted({*range(lot, pool.nodes + 1, lot), *range(pool.nodes, 0, -lot)})
    parts, part = [], pool.gpus_per_node
    while part % 2 == 0:
        part //= 2
        parts.append((1, part))
    return [*((nodes, pool.gpus_per_node) for nodes in whole), *parts]
