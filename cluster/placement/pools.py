"""`--cluster auto`: the pools of a placement, as the running cluster has them.

A placement and the cluster's nodes flow in; the placement flows out with its pools' nodes, GPUs, CPUs, memory and card
replaced. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from cluster.config import GroupsPlacement, LocalPlacement, OpenRlhfPlacement, PlacementConfig, PoolConfig
from cluster.counts import counted
from cluster.errors import PlacementError
from cluster.placement.accelerators import ACCELERATORS, named_by_ray
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups


@dataclass(frozen=True, slots=True)
class NodeKind:
    """Nodes with the same number of GPUs of the same card."""

    nodes: int
    gpus: int
    card: str
    """Ray's name of the card; empty if Ray does not know it."""
    cpus: int
    """Fewest CPUs of these nodes."""
    memory_gib: int
    """Least memory of these nodes, in GiB. What was free when Ray started differs a little between equal nodes."""

    def __str__(self) -> str:
        gpus = counted(self.gpus, f"{self.card} GPU".lstrip())
        return f"{counted(self.nodes, 'node')} with {gpus}, {counted(self.cpus, 'CPU')}, {self.memory_gib} GiB"


def with_pools_of(placement: PlacementConfig, nodes: Sequence[Node]) -> GroupsPlacement | OpenRlhfPlacement:
    """The placement on these nodes. PlacementError if a pool has no nodes of its kind."""
    check_has_pools(placement)
    assert not isinstance(placement, LocalPlacement)
    kinds = node_kinds(nodes)
    if not kinds:
        raise PlacementError(f"no node of the cluster has GPUs: {'; '.join(map(str, nodes)) or 'no node at all'}")
    if isinstance(placement, OpenRlhfPlacement):
        pool = placement.pool or as_groups(placement).pools["gpus"]
        return placement.model_copy(update={"pool": _read("placement.pool", pool, _chosen(pool, kinds) or kinds[0])})
    return placement.model_copy(update={"pools": _matched(placement.pools, kinds)})


def check_has_pools(placement: PlacementConfig) -> None:
    """Raise PlacementError for a placement without pools."""
    if isinstance(placement, LocalPlacement):
        raise PlacementError(
            "--cluster auto reads the pools of a cluster, and placement.type: local has none; use type: groups or "
            "openrlhf, or leave --cluster out"
        )


def node_kinds(nodes: Sequence[Node]) -> list[NodeKind]:
    """The kinds of nodes that have GPUs, those with most GPUs (then most CPUs) first."""
    alike: dict[tuple[int, str], list[Node]] = {}
    for node in nodes:
        if node.gpus >= 1:
            alike.setdefault((int(node.gpus), node.card), []).append(node)
    kinds = [
        NodeKind(
            len(same),
            gpus,
            card,
            int(min(node.cpus for node in same)),
            floor(min(node.memory_gib for node in same)),
        )
        for (gpus, card), same in alike.items()
    ]
    return sorted(kinds, key=lambda kind: (kind.nodes * kind.gpus, kind.nodes * kind.cpus), reverse=True)


def _matched(pools: dict[str, PoolConfig], kinds: list[NodeKind]) -> dict[str, PoolConfig]:
    """Assign a kind to each pool, no kind twice; pools that name a card choose first. A single pool takes the
    largest kind if its card is missing."""
    left, found = list(kinds), dict[str, PoolConfig]()
    for name in sorted(pools, key=lambda name: pools[name].accelerator is None):
        pool = pools[name]
        kind = _chosen(pool, left)
        if kind is None and left and (pool.accelerator is None or len(pools) == 1):
            kind = left[0]
        if kind is None:
            wanted = f"{pool.accelerator} " if pool.accelerator else ""
            taken = f" (pools {', '.join(found)} have taken theirs)" if found else ""
            raise PlacementError(
                f"no {wanted}nodes for pool {name!r}{taken}; the cluster has {'; '.join(map(str, kinds))}. Correct "
                "the pool's accelerator, or move its groups to another pool"
            )
        left.remove(kind)
        found[name] = _read(f"placement.pools.{name}", pool, kind)
    return {name: found[name] for name in pools}


def _chosen(pool: PoolConfig, kinds: Sequence[NodeKind]) -> NodeKind | None:
    """The largest kind with the card that the pool names; None if there is none."""
    card = ACCELERATORS[pool.accelerator].ray_name if pool.accelerator in ACCELERATORS else None
    return next((kind for kind in kinds if kind.card == card), None)


def _read(key: str, pool: PoolConfig, kind: NodeKind) -> PoolConfig:
    accelerator, gpu_memory_gib = _card(key, pool, kind)
    update = {
        "nodes": kind.nodes,
        "gpus_per_node": kind.gpus,
        "accelerator": accelerator,
        "gpu_memory_gib": gpu_memory_gib,
        "host_memory_gib": float(max(kind.memory_gib, 1)),
        "cpus_per_node": max(kind.cpus, 1),
    }
    return pool.model_copy(update=update)


def _card(key: str, pool: PoolConfig, kind: NodeKind) -> tuple[str | None, float | None]:
    """(accelerator, gpu_memory_gib) for a kind: the file's if they fit, because Ray does not know a card's memory."""
    named = ACCELERATORS.get(pool.accelerator or "")
    if not kind.card or (named and named.ray_name == kind.card):
        return pool.accelerator, pool.gpu_memory_gib
    same = named_by_ray(kind.card)
    if len(same) == 1:
        return same[0], None
    if pool.accelerator is None and pool.gpu_memory_gib is not None:
        return None, pool.gpu_memory_gib
    fix = f"{key}.accelerator to {' or '.join(same)}" if same else f"{key}.gpu_memory_gib, and its accelerator to null"
    raise PlacementError(f"Ray calls the cluster's cards {kind.card}, which leaves their memory open; set {fix}")
