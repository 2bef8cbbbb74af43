"""Pools as a running cluster has them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from cluster.config import GroupsPlacement, OpenRlhfPlacement, PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.gpu_groups import problems
from cluster.placement.node import Node
from cluster.placement.pools import node_kinds, with_pools_of

HEAD = Node("head", 16, 0, "", 60)
H100 = [Node(f"h{n}", 96, 8, "H100", 1000.5 + n) for n in range(2)]
L40S = [Node(f"l{n}", 48, 4, "L40S", 500) for n in range(3)]
A100 = [Node("a", 96, 8, "A100", 900)]
BARE = [Node("bare", 8, 4, "", 100)]


def placement(**pools: dict[str, Any]) -> GroupsPlacement:
    pools = {name: {"nodes": 99, "gpus_per_node": 2, **pool} for name, pool in pools.items()}
    groups = {name: {"pool": name, "gpus_per_node": 2} for name in pools}
    made = TypeAdapter(PlacementConfig).validate_python({"type": "groups", "pools": pools, "groups": groups})
    assert isinstance(made, GroupsPlacement)
    return made


def read(made: GroupsPlacement, nodes: list[Node]) -> dict[str, tuple[Any, ...]]:
    """Pool → (nodes, GPUs, card, CPUs, memory)."""
    found = with_pools_of(made, nodes)
    assert isinstance(found, GroupsPlacement) and found.groups == made.groups
    return {
        name: (pool.nodes, pool.gpus_per_node, pool.accelerator, pool.cpus_per_node, pool.host_memory_gib)
        for name, pool in found.pools.items()
    }


def test_nodes_that_are_alike_are_one_kind_with_the_least_memory() -> None:
    kinds = node_kinds([HEAD, *L40S, *H100])
    assert [str(kind) for kind in kinds] == [
        "2 nodes with 8 H100 GPUs, 96 CPUs, 1000 GiB",
        "3 nodes with 4 L40S GPUs, 48 CPUs, 500 GiB",
    ]


def test_each_pool_gets_the_nodes_of_its_card() -> None:
    made = placement(frozen={}, trained={"accelerator": "H100-80GB"})
    assert read(made, [*L40S, HEAD, *H100]) == {
        "frozen": (3, 4, "L40S-48GB", 48, 500.0),
        "trained": (2, 8, "H100-80GB", 96, 1000.0),
    }


def test_a_pool_that_is_alone_takes_the_largest_kind() -> None:
    assert read(placement(gpus={"accelerator": "A800-80GB"}), [*L40S, *H100])["gpus"][:3] == (2, 8, "H100-80GB")
    assert read(placement(gpus={"accelerator": "L40S-48GB"}), [*L40S, *H100])["gpus"][:3] == (3, 4, "L40S-48GB")
    assert read(placement(gpus={"accelerator": "A800-80GB"}), BARE)["gpus"] == (1, 4, "A800-80GB", 8, 100.0)


def test_openrlhf_words() -> None:
    words = {"type": "openrlhf", "actor_num_gpus_per_node": 2, "pool": None}
    for pool in (None, {"nodes": 1, "gpus_per_node": 2, "accelerator": "L40S-48GB"}):
        made = TypeAdapter(PlacementConfig).validate_python({**words, "pool": pool})
        found = with_pools_of(made, [*H100, *L40S])
        assert isinstance(found, OpenRlhfPlacement) and found.pool is not None
        assert found.pool.accelerator == ("L40S-48GB" if pool else "H100-80GB")
        assert found.model_copy(update={"pool": made.pool}) == made


def test_where_the_card_leaves_its_memory_open_the_file_says_it() -> None:
    assert read(placement(gpus={"accelerator": "A100-40GB"}), A100)["gpus"][2] == "A100-40GB"
    found = with_pools_of(placement(gpus={"gpu_memory_gib": 39.0}), A100)
    assert isinstance(found, GroupsPlacement) and found.pools["gpus"].gpu_memory_gib == 39.0
    with pytest.raises(PlacementError, match=r"placement.pools.gpus.accelerator to A100-40GB or A100-80GB"):
        with_pools_of(placement(gpus={}), A100)
    with pytest.raises(PlacementError, match=r"cards T4, .*set placement.pools.gpus.gpu_memory_gib"):
        with_pools_of(placement(gpus={"accelerator": "L4-24GB"}), [Node("t", 8, 4, "T4", 100)])


@pytest.mark.parametrize(
    ("pools", "nodes", "message"),
    [
        (
            {"a": {"accelerator": "H100-80GB"}, "b": {}},
            L40S,
            r"no H100-80GB nodes for pool 'a'; the cluster has 3",
        ),
        ({"a": {}, "b": {}}, L40S, r"no nodes for pool 'b' \(pools a have taken theirs\); the cluster has 3 nodes"),
        ({"a": {}}, [HEAD], "no node of the cluster has GPUs: head: 16 CPUs, 0 GPUs"),
        ({"a": {}}, [], "no node of the cluster has GPUs: no node at all"),
    ],
)
def test_a_pool_without_nodes_is_named(pools: dict[str, Any], nodes: list[Node], message: str) -> None:
    with pytest.raises(PlacementError, match=message):
        with_pools_of(placement(**pools), nodes)


def test_one_machine_has_no_pools() -> None:
    local = TypeAdapter(PlacementConfig).validate_python({"type": "local"})
    with pytest.raises(PlacementError, match="type: local has none; use type: groups or openrlhf"):
        with_pools_of(local, H100)


def test_pools_that_ray_would_confuse_are_refused() -> None:
    made = placement(small={"accelerator": "A100-40GB"}, large={"accelerator": "A100-80GB"})
    found = [problem for problem in problems(made) if "tell apart" in problem]
    assert len(found) == 1
    assert "pools large, small have A100-40GB, A100-80GB" in found[0] and "the smaller one, A100-40GB" in found[0]
    same = placement(one={"accelerator": "A100-40GB"}, two={"accelerator": "A100-40GB"})
    assert not [problem for problem in problems(same) if "tell apart" in problem]
