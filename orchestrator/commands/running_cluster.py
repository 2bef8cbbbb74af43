"""`--cluster auto`: a configuration on the cluster that runs.

A configuration and the cluster's nodes flow in; the configuration with the pools as they are flows out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cluster.config import PoolConfig
from cluster.counts import counted
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.pools import check_has_pools, with_pools_of
from cluster.runtime.nodes import nodes_of
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import validate_root

C = TypeVar("C", bound=BaseConfig)


def on_running_cluster(config: C) -> C:
    """The run with the pools of the cluster that RAY_ADDRESS names, or that runs on this machine."""
    check_has_pools(config.placement)
    return on_nodes(config, nodes_of(None))


def on_nodes(config: C, nodes: Sequence[Node]) -> C:
    """The run with the pools of these nodes. PlacementError or ConfigError if its groups have no room there."""
    placement = with_pools_of(config.placement, nodes)
    data = config.model_dump(by_alias=True)
    data["placement"] = placement.model_dump(by_alias=True)
    return validate_root(type(config), data, source="the configuration on the running cluster")


def describe_pools(config: BaseConfig) -> list[str]:
    """One line for each pool."""
    placement = config.placement
    assert placement.type != "local"
    return [f"pool {name}: {_describe(pool)}" for name, pool in as_groups(placement).pools.items()]


def _describe(pool: PoolConfig) -> str:
    card = pool.accelerator or (f"{pool.gpu_memory_gib:g} GiB" if pool.gpu_memory_gib else "unknown")
    return (
        f"{counted(pool.nodes, 'node')} with {counted(pool.gpus_per_node, f'{card} GPU')}, "
        f"{counted(pool.cpus_per_node, 'CPU')} and "
        f"{pool.host_memory_gib:g} GiB"
    )
