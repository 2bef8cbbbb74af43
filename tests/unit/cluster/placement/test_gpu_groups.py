"""Groups on pools: which rank gets which GPU, and the messages about bad layouts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cluster.capacity.shortage import check_capacity
from cluster.config import GroupsPlacement, PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.gpu_assignment import seats
from cluster.placement.gpu_groups import problems
from cluster.placement.node import Node
from cluster.placement.plan import Plan, RoleNeed, plan

ALL = [RoleNeed(role, gpu=True) for role in ("rollout", "actor", "critic", "reference", "reward")]
SEVENTY_B = {
    "type": "openrlhf",
    "actor_num_nodes": 2,
    "actor_num_gpus_per_node": 4,
    "vllm_num_engines": 2,
    "vllm_tensor_parallel_size": 4,
    "critic_num_nodes": 2,
    "critic_num_gpus_per_node": 4,
    "ref_num_nodes": 2,
    "ref_num_gpus_per_node": 4,
    "reward_num_nodes": 2,
    "reward_num_gpus_per_node": 4,
}


def placement(data: dict[str, Any]) -> Any:
    return TypeAdapter(PlacementConfig).validate_python(data)


def groups(pools: dict[str, Any] | None = None, **of: dict[str, Any]) -> GroupsPlacement:
    pools = pools or {"a": {"nodes": 2, "gpus_per_node": 8}}
    made = placement({"type": "groups", "pools": pools, "groups": {k: {"pool": "a", **v} for k, v in of.items()}})
    assert isinstance(made, GroupsPlacement)
    return made


POLICY = {"gpus_per_node": 4, "roles": ["actor", "reference"], "engines": {"number": 2, "tensor_parallel_size": 2}}
VALUE = {"gpus_per_node": 4, "roles": ["critic", "reward"]}


def check_sound(made: Plan, gpus_per_node: int) -> None:
    """What holds for every plan."""
    for slot in made.slots:
        assert len(set(slot.gpus)) == len(slot.gpus)
        assert all(0 <= gpu < gpus_per_node for gpu in slot.gpus)
    for role in made.roles:
        slots = made.of(role)
        assert [slot.rank for slot in slots] == list(range(len(slots)))
        assert [slot.node for slot in slots] == sorted(slot.node for slot in slots), "ranks are contiguous by node"
        own = [(slot.node, gpu) for slot in slots for gpu in slot.gpus]
        assert len(set(own)) == len(own), "no GPU twice within a role"
    used: Counter[tuple[int, int]] = Counter()
    for slot in made.slots:
        for gpu in slot.gpus:
            used[slot.node, gpu] += slot.share  # type: ignore[assignment]
    assert all(amount <= 1 + 1e-9 for amount in used.values()), "no GPU is given away more than once"


def test_only_what_a_command_needs_is_placed() -> None:
    made = plan(placement(SEVENTY_B), [RoleNeed("rollout", gpu=True), RoleNeed("judge", workers=3)])
    assert made.roles == ["rollout", "judge"]
    assert made.nodes == 2
    assert all(slot.gpus == () and slot.share == 1.0 for slot in made.of("judge"))


def test_groups_share_a_node_side_by_side() -> None:
    made = plan(groups(p=POLICY, v=VALUE), ALL)
    check_sound(made, 8)
    assert made.nodes == 1
    assert [slot.gpus for slot in made.of("critic")] == [(4,), (5,), (6,), (7,)]
    assert [slot.gpus for slot in made.of("rollout")] == [(0, 1), (2, 3)]


def test_a_cheap_pool_for_the_frozen_models() -> None:
    pools = {
        "a": {"nodes": 1, "gpus_per_node": 8},
        "cheap": {"nodes": 3, "gpus_per_node": 4, "accelerator": "L40S-48GB"},
    }
    policy = {**POLICY, "roles": ["actor", "critic"]}
    made = plan(
        groups(pools, p=policy, f={"pool": "cheap", "nodes": 2, "gpus_per_node": 2, "roles": ["reward", "reference"]}),
        ALL,
    )
    assert made.pools == ("a", "cheap", "cheap")
    assert made.cards == ("", "L40S", "L40S")
    with pytest.raises(PlacementError, match="the cluster is too small"):
        check_capacity(made, [Node("x", 64, 8, "H100"), Node("y", 64, 8, "H100"), Node("z", 64, 4, "L40S")])
    check_capacity(made, [Node("x", 64, 8, "H100"), Node("y", 64, 4, "L40S"), Node("z", 64, 4, "L40S")])
    assert [slot.node for slot in made.of("reward")] == [1, 1, 2, 2]


def test_widest_groups_choose_first() -> None:
    """In the order of the file the small group would take a GPU that the wide one needs."""
    pools = {"a": {"nodes": 2, "gpus_per_node": 4}}
    small = {"nodes": 2, "gpus_per_node": 1, "roles": ["reward"]}
    wide = {"gpus_per_node": 4, "roles": ["actor"]}
    with pytest.raises(
        PlacementError,
        match=r"^placement\.pools\.a\.nodes=2 is too few: group 'small' asks for 2 x 1 GPU, but only 1 of 2 nodes "
        r"have so many left \(GPUs left by node: 0, 4\); use nodes: 3, or",
    ):
        seats(groups(pools, small=small, wide=wide), {"small", "wide"})
    one = {**small, "nodes": 1}
    placed = seats(groups(pools, small=one, wide=wide), {"small", "wide"})
    assert {seat.node for seat in placed["wide"]}.isdisjoint(seat.node for seat in placed["small"])


def test_groups_on_many_nodes_choose_before_those_on_one() -> None:
    """In the order of the file the two small ones would fill a node that the wide one needs half of."""
    one, two = {"gpus_per_node": 4, "roles": ["actor"]}, {"nodes": 2, "gpus_per_node": 4, "roles": ["critic"]}
    placed = seats(groups(a=one, b={**one, "roles": ["reward"]}, c=two), {"a", "b", "c"})
    assert {seat.node for seat in placed["c"]} == {0, 1}


def test_cpus_are_counted() -> None:
    pools = {"a": {"nodes": 1, "gpus_per_node": 8, "cpus_per_node": 20}}
    few = groups(pools, p={**POLICY, "cpus_per_rank": 2}, v=VALUE)
    with pytest.raises(
        PlacementError, match=r"^placement\.pools\.a\.cpus_per_node=20 is less than the 32 CPUs .*; use 32, or a lower"
    ):
        plan(few, ALL)


@pytest.mark.parametrize(
    ("of", "line"),
    [
        ({"p": {**POLICY, "pool": "b"}}, "placement.groups.p.pool='b' is not in placement.pools; use a"),
        (
            {"p": {**VALUE, "gpus_per_node": 9}},
            "placement.groups.p.gpus_per_node=9 is more than the 8 of a node of pool 'a'",
        ),
        ({"p": {**VALUE, "nodes": 3}}, "placement.groups.p.nodes=3 is more than the 2 of pool 'a'"),
        ({"p": {"gpus_per_node": 4}}, "placement.groups.p has neither roles nor engines"),
        ({"p": {**VALUE, "roles": ["critic", "critic"]}}, "placement.groups.p.roles names critic twice"),
        (
            {"p": POLICY, "q": {**VALUE, "roles": ["actor"]}},
            "placement.groups.p.roles and placement.groups.q.roles each have the role 'actor'; leave it in one",
        ),
        (
            {"p": POLICY, "q": {**POLICY, "roles": []}},
            "placement.groups.p.engines and placement.groups.q.engines each have vLLM engines; leave it in one",
        ),
        (
            {"p": {**POLICY, "engines": {"number": 1, "tensor_parallel_size": 3}}},
            "placement.groups.p.engines.tensor_parallel_size=3 does not divide its gpus_per_node=4 (an engine stays in "
            "one node); use 1, 2, 4",
        ),
        (
            {"p": {**POLICY, "engines": {"number": 3, "tensor_parallel_size": 2}}},
            "placement.groups.p.engines: 3 x 2 GPUs are 6, but the group has 4; use number: 2",
        ),
    ],
)
def test_bad_groups_are_told_in_one_line(of: dict[str, Any], line: str) -> None:
    found = problems(groups(**of))
    assert len(found) == 1 and found[0].startswith(line), found


def test_an_unknown_accelerator_is_told() -> None:
    pools = {"a": {"nodes": 1, "gpus_per_node": 8, "accelerator": "H100"}}
    (line,) = problems(groups(pools, p=POLICY))
    assert line.startswith(
        "placement.pools.a.accelerator='H100' is not known; did you mean H100-80GB? use one of A100-40GB"
    )


def test_missing_roles_are_told() -> None:
    with pytest.raises(
        PlacementError, match=r"no group of placement.groups has the role 'critic'; add `roles: \[critic\]`"
    ):
        plan(groups(p=POLICY), ALL)
    with pytest.raises(PlacementError, match=r"has vLLM engines; add `engines: \{number"):
        plan(groups(v=VALUE), ALL)


@pytest.mark.parametrize(
    "data",
    [
        {"type": "grouped"},
        {**SEVENTY_B, "actor_num_nodes": 0},
        {**SEVENTY_B, "actor_num_nodes": 10**9},
        {"type": "local", "reward": {"ranks": 10**9}},
        {**SEVENTY_B, "groups": {}},
        {"type": "groups", "pools": {"a": {"nodes": -1, "gpus_per_node": 8}}, "groups": {"p": POLICY}},
        {"type": "groups", "pools": {"a": {"nodes": 1, "gpus_per_node": 8000}}, "groups": {"p": POLICY}},
        {
            "type": "groups",
            "pools": {"a": {"nodes": 1, "gpus_per_node": 8}},
            "groups": {"p": {**POLICY, "pool": "a", "roles": ["jury"]}},
        },
    ],
)
def test_absurd_numbers_and_unknown_words_are_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        placement(data)
