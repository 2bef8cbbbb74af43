"""Whether a cluster holds a plan, and the changes that are named where it does not: applied, they make it fit."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cluster.capacity.changes import ClusterChange, changed, cluster_change, placement_change
from cluster.capacity.matching import assign, fits
from cluster.capacity.shortage import check_capacity, describe_shortage, describe_wait
from cluster.config import PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.node import Node
from cluster.placement.plan import Plan, RoleNeed, Slot, plan

ALL = [RoleNeed(role, gpu=True) for role in ("rollout", "actor", "critic", "reference", "reward")]
KINDS = st.tuples(st.integers(1, 4), st.integers(0, 3), st.sampled_from(["", "A", "B"]))


def nodes_of(*kinds: tuple[float, float, str]) -> list[Node]:
    return [Node(f"n{number}", *kind) for number, kind in enumerate(kinds)]


def by_hand(*kinds: tuple[int, int, str]) -> Plan:
    """One rank for each planned node."""
    slots = [Slot("actor", n, n, cpus, cpus, tuple(range(gpus))) for n, (cpus, gpus, _) in enumerate(kinds)]
    return Plan(tuple(slots), ("a",) * len(kinds), tuple(card for _, _, card in kinds))


def made(placement: dict[str, Any], needs: Sequence[RoleNeed] = ALL) -> Plan:
    return plan(TypeAdapter(PlacementConfig).validate_python(placement), needs)


def changed_plan(wanted: Plan, change: dict[str, int]) -> Plan:
    assert wanted.placement is not None
    return plan(changed(wanted.placement, change), wanted.needs)


def with_change(nodes: Sequence[Node], change: ClusterChange) -> list[Node]:
    """The cluster, changed as it was told."""
    left = list(nodes)
    for node, cpus in change.raised:
        left[left.index(node)] = replace(node, cpus=cpus)
    return left + list(change.added)


# Exact


@settings(deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=4), st.lists(KINDS, max_size=5))
def test_whether_it_fits_is_exact(asked: list[tuple[int, int, str]], having: list[tuple[int, int, str]]) -> None:
    wanted, nodes = by_hand(*asked), nodes_of(*having)
    demands = wanted.demands
    orders = list(permutations(nodes, len(demands))) if len(demands) <= len(nodes) else []
    most = max(
        sum(node.holds(demand) for node, demand in zip(order, demands, strict=False))
        for order in permutations([*nodes, *[Node("none", 0, 0)] * len(demands)], len(demands))
    )
    assert fits(wanted, nodes) == any(
        all(node.holds(demand) for node, demand in zip(order, demands, strict=True)) for order in orders
    )
    homes = assign(demands, nodes)
    assert len(homes) == most == len(set(homes.values()))
    assert all(nodes[home].holds(demands[demand]) for demand, home in homes.items())


def test_the_larger_node_is_kept_for_whoever_needs_it() -> None:
    """Whoever takes the first node that fits, smallest first, leaves one without."""
    check_capacity(by_hand((1, 2, ""), (8, 1, "")), nodes_of((8, 2, ""), (1, 2, "")))
    check_capacity(by_hand((1, 2, ""), (8, 1, "")), nodes_of((8, 2, ""), (8, 2, "")))
    check_capacity(by_hand((2, 2, ""), (2, 2, "A")), nodes_of((2, 2, "A"), (4, 4, "B")))
    with pytest.raises(PlacementError):
        check_capacity(by_hand((1, 2, ""), (8, 1, "")), nodes_of((8, 2, ""), (1, 1, "")))


def test_many_nodes_take_no_time() -> None:
    kinds = [(4, 2, "A")] * 300
    assert fits(by_hand(*kinds), nodes_of(*kinds))
    assert len(assign(by_hand(*[(8, 2, "A")] * 300).demands, nodes_of(*kinds))) == 0


# What the cluster lacks


@settings(deadline=None)
@given(st.lists(KINDS, min_size=1, max_size=4), st.lists(KINDS, max_size=4), st.booleans())
def test_the_named_change_of_the_cluster_is_the_smallest_and_fits(
    asked: list[tuple[int, int, str]], having: list[tuple[int, int, str]], raising: bool
) -> None:
    wanted, nodes = by_hand(*asked), nodes_of(*having)
    change = cluster_change(wanted, nodes, raising=raising)
    assert fits(wanted, with_change(nodes, change))
    assert (not change.raised and not change.added) == fits(wanted, nodes)
    assert raising or not change.raised
    unserved = len(wanted.demands) - len(assign(wanted.demands, nodes))
    assert len(change.raised) + len(change.added) == unserved, "a machine for each that goes without, never more"
    cpus = [wanted.demand(n).cpus for n in range(wanted.nodes)]
    assert sum(to - node.cpus for node, to in change.raised) <= sum(cpus)
    if len({card for _, _, card in asked}) == 1:
        assert len(change.added) == _fewest_new(wanted.demands, nodes, unserved, raising)


def _fewest_new(demands: Sequence[Node], nodes: Sequence[Node], most: int, raising: bool) -> float:
    """Fewest new machines if at most `most` machines are new or get more CPUs. Tries every assignment."""
    if most < 0 or not demands:
        return 0 if most >= 0 else math.inf
    first, rest = demands[0], demands[1:]
    found = [1 + _fewest_new(rest, nodes, most - 1, raising)]
    for node in nodes:
        if node.holds(first) or (raising and replace(node, cpus=99).holds(first)):
            others = [other for other in nodes if other is not node]
            found.append(_fewest_new(rest, others, most - (not node.holds(first)), raising))
    return min(found)


def test_a_small_demand_leaves_the_large_machine_that_more_cpus_make_fit() -> None:
    """More CPUs for n0 are enough, once the planned node with 1 GPU moves to n1."""
    wanted = by_hand((4, 2, ""), (1, 1, ""))
    change = cluster_change(wanted, nodes_of((2, 2, ""), (2, 1, "")), raising=True)
    assert [(node.name, cpus) for node, cpus in change.raised] == [("n0", 4)]
    assert change.added == ()


def test_cpus_are_asked_of_nodes_that_are_there_before_new_ones() -> None:
    wanted = by_hand((6, 2, ""), (6, 2, ""))
    change = cluster_change(wanted, nodes_of((4, 2, ""), (6, 2, ""), (5, 2, "")), raising=True)
    assert [(node.name, cpus) for node, cpus in change.raised] == [("n2", 6)]
    assert change.added == ()


def test_the_largest_chooses_first_the_node_that_is_nearest_to_it() -> None:
    wanted = by_hand((64, 4, ""), (64, 8, ""))
    change = cluster_change(wanted, nodes_of((32, 8, ""), (16, 4, "")), raising=True)
    assert {(node.name, cpus) for node, cpus in change.raised} == {("n0", 64), ("n1", 64)}
    assert change.added == ()


# What the configuration may ask instead

SPLIT = {
    "type": "openrlhf",
    **{f"{role}_num_nodes": 2 for role in ("actor", "critic", "ref", "reward")},
    **{f"{role}_num_gpus_per_node": 4 for role in ("actor", "critic", "ref", "reward")},
    "vllm_num_engines": 2,
    "vllm_tensor_parallel_size": 4,
}
ONE_POOL = {"a": {"nodes": 1, "gpus_per_node": 8, "cpus_per_node": 64}}
NO_GPUS = {"nodes": 1, "gpus_per_node": 0}
TWO = {
    "p": {"pool": "a", "gpus_per_node": 4, "roles": ["actor", "reference"], "engines": {"number": 4}},
    "v": {"pool": "a", "gpus_per_node": 4, "roles": ["critic", "reward"], "cpus_per_rank": 3},
}
GROUPS = {"type": "groups", "pools": ONE_POOL, "groups": TWO}
LOCAL = {"type": "local", "actor": {"ranks": 2, "threads": 3}}


@pytest.mark.parametrize(
    ("placement", "nodes", "change"),
    [
        ({**SPLIT, "cpus_per_rank": 3}, [(8, 4, "")] * 8, {"cpus_per_rank": 1}),
        ({**SPLIT, "cpus_per_rank": 3}, [(16, 4, "")] * 8, {"cpus_per_rank": 2}),
        (SPLIT, [(8, 4, "")] * 7, {"critic_num_nodes": 1}),
        (SPLIT, [(8, 4, "")] * 6, {"critic_num_nodes": 1, "reward_num_nodes": 1}),
        (SPLIT, [(8, 4, "")] * 3, None),
        ({**SPLIT, "pool": {"nodes": 8, "gpus_per_node": 4}}, [(16, 8, "")] * 4, {"pool.gpus_per_node": 8}),
        (GROUPS, [(64, 4, "")] * 2, {"pools.a.gpus_per_node": 4, "pools.a.nodes": 2}),
        (GROUPS, [(30, 8, "")], {"groups.v.cpus_per_rank": 2}),
        (GROUPS, [(64, 6, "")], {"groups.v.gpus_per_node": 2}),
        ({**GROUPS, "pools": {**ONE_POOL, "b": NO_GPUS}}, [(64, 6, "")], {"groups.v.gpus_per_node": 2}),
        (GROUPS, [(64, 1, "")], None),
        (LOCAL, [(64, 5, "")], {"actor.ranks": 1}),
        (LOCAL, [(64, 4, "")], None),
    ],
)
def test_the_named_change_of_the_placement_is_the_smallest_and_fits(
    placement: dict[str, Any], nodes: list[tuple[float, float, str]], change: dict[str, int] | None
) -> None:
    wanted, having = made(placement), nodes_of(*nodes)
    assert not fits(wanted, having)
    assert placement_change(wanted, having) == change
    if change is not None:
        assert fits(changed_plan(wanted, change), having)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([SPLIT, GROUPS, LOCAL, {**SPLIT, "cpus_per_rank": 5}]),
    st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8), st.just("")), max_size=8),
)
def test_no_promise_is_false(placement: dict[str, Any], nodes: list[tuple[float, float, str]]) -> None:
    wanted, having = made(placement), nodes_of(*nodes)
    if fits(wanted, having):
        check_capacity(wanted, having)
        return
    change = placement_change(wanted, having)
    assert change is None or fits(changed_plan(wanted, change), having)
    assert fits(wanted, with_change(having, cluster_change(wanted, having, raising=True)))


# In words


def test_a_shortage_is_told_in_one_line() -> None:
    with pytest.raises(PlacementError) as error:
        check_capacity(made({**SPLIT, "cpus_per_rank": 3}), nodes_of(*[(8, 4, "A800")] * 8))
    assert str(error.value) == (
        "the cluster is too small: asked for 2 x (24 CPUs, 4 GPUs); 6 x (12 CPUs, 4 GPUs) (rollout: 2 x 12 CPUs and 2 "
        "GPUs; actor: 8 x 3 CPUs and 0.5 GPUs; critic: 8 x 3 CPUs and 1 GPU; reference: 8 x 3 CPUs and 1 GPU; "
        "reward: 8 x 3 CPUs and 1 GPU), each planned node on one real node; having 8 x (8 CPUs, 4 A800 GPUs). Set "
        "placement.cpus_per_rank: 1 (now 3), or give 2 nodes of (8 CPUs, 4 A800 GPUs) more CPUs (`ray start "
        "--num-cpus=24`) and give 6 nodes of (8 CPUs, 4 A800 GPUs) more CPUs (`ray start --num-cpus=12`)"
    )


def test_nodes_that_differ_keep_their_names() -> None:
    two = by_hand((4, 2, ""), (2, 4, ""))
    check_capacity(two, [Node("a", 4, 4), Node("b", 4, 2)])
    with pytest.raises(PlacementError) as error:
        check_capacity(two, [Node("a", 100, 4)])
    assert "asked for planned node 0: 4 CPUs, 2 GPUs; planned node 1: 2 CPUs, 4 GPUs (actor" in str(error.value)
    assert "having a: 100 CPUs, 4 GPUs. Add 1 node of (4 CPUs, 2 GPUs)" in str(error.value)
    with pytest.raises(PlacementError, match=r"no node at all\. Add 1 node of \(4 CPUs, 2 GPUs\) and add 1 node of"):
        check_capacity(two, [])


def test_fragments_on_several_nodes_do_not_count_as_one() -> None:
    one = Plan((Slot("actor", 0, 0, 2, 2), Slot("actor", 1, 0, 2, 2)))
    with pytest.raises(PlacementError, match=r"too small.* Give 1 node of \(3 CPUs, 0 GPUs\) .*--num-cpus=4"):
        check_capacity(one, [Node("a", 3, 0), Node("b", 3, 0)])


@pytest.mark.parametrize(
    ("free", "told"),
    [
        (
            [(0, 2, ""), (4, 1, "")],
            "waiting for room: planned node 0 (actor; 4 CPUs, 2 GPUs) is short of 4 CPUs on n0, the nearest; "
            "planned node 1 (actor; 2 CPUs, 1 H GPU) is short of H GPUs on n1, the nearest; "
            "free are n0: 0 CPUs, 2 GPUs; n1: 4 CPUs, 1 GPU",
        ),
        (
            [(9, 8, "H")],
            "waiting for room: planned node 1 (actor; 2 CPUs, 1 H GPU) finds no other node; "
            "free are n0: 9 CPUs, 8 H GPUs",
        ),
        (
            [],
            "waiting for room: planned node 0 (actor; 4 CPUs, 2 GPUs) finds no other node; "
            "planned node 1 (actor; 2 CPUs, 1 H GPU) finds no other node; free are no node at all",
        ),
        ([(9, 8, "H"), (9, 8, "H")], "waiting for Ray to give what is free: 2 x (9 CPUs, 8 H GPUs)"),
    ],
)
def test_while_it_is_waited_for_what_is_lacking_is_named(free: list[tuple[float, float, str]], told: str) -> None:
    assert describe_wait(by_hand((4, 2, ""), (2, 1, "H")), nodes_of(*free)) == told


def test_many_nodes_without_room_are_counted() -> None:
    many = by_hand(*[(4, 2, "")] * 9)
    text = describe_wait(many, nodes_of(*[(4, 0, "")] * 9))
    assert text.count("is short of 2 GPUs") == 3 and "and 6 more planned nodes; free are 9 x (4 CPUs, 0 GPUs)" in text


def test_a_busy_cluster_is_waited_for() -> None:
    text = describe_shortage(made(SPLIT), nodes_of(*[(8, 4, "")] * 6, (0, 0, ""), (8, 1, "")), busy=True)
    assert "free are 6 x (8 CPUs, 4 GPUs); n6: 0 CPUs, 0 GPUs; n7: 8 CPUs, 1 GPU. Wait for other jobs to end" in text
    assert re.search(r"or set placement\.critic_num_nodes: 1 \(now 2\) and .*, or add 2 nodes of \(4 CPUs, 4 G", text)
    assert "--num-cpus" not in text, "a busy node has the CPUs, somebody else is using them"
    assert "start again" in describe_shortage(made(SPLIT), nodes_of(*[(8, 4, "")] * 8), busy=True)
