"""Groups on pools: who gets which GPU, OpenRLHF's words, and what bad layouts are told."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cluster.capacity.shortage import check_capacity
from cluster.config import GroupsPlacement, OpenRlhfPlacement, PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.gpu_assignment import seats
from cluster.placement.gpu_groups import problems
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan, RoleNeed, engines_neighbours, plan, ranks_of, tensor_parallel_size

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


def test_the_seventy_b_layout_of_openrlhf() -> None:
    made = plan(placement(SEVENTY_B), ALL)
    check_sound(made, 4)
    assert made.nodes == 8
    assert {role: len(made.of(role)) for role in made.roles} == {
        "rollout": 2,
        "actor": 8,
        "critic": 8,
        "reference": 8,
        "reward": 8,
    }
    # The engines' 8 GPUs are the actor's.
    assert [(slot.node, slot.gpus) for slot in made.of("rollout")] == [(0, (0, 1, 2, 3)), (1, (0, 1, 2, 3))]
    assert [(slot.node, slot.gpus) for slot in made.of("actor")] == [(n, (g,)) for n in (0, 1) for g in range(4)]
    assert {slot.share for slot in made.of("actor") + made.of("rollout")} == {0.5}
    assert {slot.share for slot in made.of("critic")} == {1.0}
    homes = [{slot.node for slot in made.of(role)} for role in ("actor", "critic", "reference", "reward")]
    assert sorted(node for home in homes for node in home) == list(range(8))
    assert (ranks_of(placement(SEVENTY_B), "reward"), ranks_of(placement(SEVENTY_B), "rollout")) == (8, 2)
    assert tensor_parallel_size(placement(SEVENTY_B)) == 4
    assert engines_neighbours(placement(SEVENTY_B)) == ("actor",)
    assert engines_neighbours(placement({**SEVENTY_B, "vllm_num_engines": 6})) == ()


def test_all_on_the_same_cards() -> None:
    sizes = {
        f"{role}_num_{what}": n
        for role in ("actor", "critic", "ref", "reward")
        for what, n in (("nodes", 1), ("gpus_per_node", 8))
    }
    made = plan(
        placement(
            {
                "type": "openrlhf",
                **sizes,
                "vllm_num_engines": 4,
                "vllm_tensor_parallel_size": 2,
                "colocate_all_models": True,
            }
        ),
        ALL,
    )
    check_sound(made, 8)
    assert made.nodes == 1
    assert {slot.share for slot in made.slots} == {1 / 5}
    assert made.demand(0).gpus == 8
    assert made.demand(0).cpus == 8 * 5


def test_two_pairs_share() -> None:
    made = plan(placement({**SEVENTY_B, "colocate_actor_ref": True, "colocate_critic_reward": True}), ALL)
    check_sound(made, 4)
    assert made.nodes == 4
    assert {slot.share for slot in made.of("actor") + made.of("reference") + made.of("rollout")} == {1 / 3}
    assert {slot.share for slot in made.of("critic") + made.of("reward")} == {1 / 2}


def test_engines_with_cards_of_their_own() -> None:
    made = plan(placement({**SEVENTY_B, "vllm_num_engines": 6, "vllm_tensor_parallel_size": 2}), ALL)
    check_sound(made, 4)
    assert [(slot.node, slot.gpus) for slot in made.of("rollout")][:2] == [
        (made.of("rollout")[0].node, (0, 1)),
        (made.of("rollout")[0].node, (2, 3)),
    ]
    assert made.nodes == 8 + 3
    assert {slot.share for slot in made.slots} == {1.0}


def test_engines_share_the_actors_cards_or_not_as_is_said() -> None:
    together = {"colocate_all_models": True, "colocate_engines": False}
    made = plan(placement({**SEVENTY_B, **together}), ALL)
    assert made.nodes == 2 + 2 and {slot.share for slot in made.of("rollout")} == {1.0}
    assert {slot.share for slot in made.of("actor") + made.of("reward")} == {1 / 4}
    assert plan(placement({**SEVENTY_B, "colocate_engines": False}), ALL).nodes == 8 + 2
    with pytest.raises(PlacementError, match=r"placement\.colocate_engines=true puts the engines on the actor's 8"):
        as_groups(placement({**SEVENTY_B, "colocate_engines": True, "vllm_num_engines": 3}))


def test_a_guest_of_a_critic_that_is_not_there() -> None:
    alone = {**SEVENTY_B, "critic_num_nodes": 0, "colocate_critic_reward": True}
    assert set(as_groups(placement(alone)).groups) == {"actor", "reference", "reward"}


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
        match=r"^placement\.pools\.a\.nodes=2 is too few: group 'small' asks for 2 x 1 GPUs, but only 1 of 2 nodes "
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
    ("changes", "part"),
    [
        ({"colocate_all_models": True, "vllm_num_engines": 3}, "8 GPUs, but 3 x 4 are 12; use vllm_num_engines: 2"),
        (
            {"colocate_actor_ref": True, "ref_num_nodes": 1},
            "placement.colocate_actor_ref=true puts the reference on the actor's GPUs, but 1 x 4 GPUs is not 2 x 4 "
            "GPUs; use ref_num_nodes: 2 and ref_num_gpus_per_node: 4, as the actor has",
        ),
        (
            {"colocate_all_models": True, "vllm_tensor_parallel_size": 3},
            r"vllm_tensor_parallel_size=3 does not divide actor_num_gpus_per_node=4, .*; use 1 \(vllm_num_engines: 8",
        ),
        (
            {"vllm_num_engines": 1, "vllm_tensor_parallel_size": 8},
            r"vllm_tensor_parallel_size=8 does not divide actor_num_gpus_per_node=4, .* 4 \(vllm_num_engines: 2\)",
        ),
        (
            {"pool": {"nodes": 7, "gpus_per_node": 4}},
            "placement.pool.nodes=7 is too few: actor and engines 2 x 4 GPUs, critic 2 x 4 GPUs, reward 2 x 4 GPUs, "
            "reference 2 x 4 GPUs are 8 nodes of gpus_per_node=4; use nodes: 8",
        ),
        (
            {"pool": {"nodes": 8, "gpus_per_node": 2}},
            "placement.actor_num_gpus_per_node=4 is more than placement.pool.gpus_per_node=2; use 2 and more nodes",
        ),
        (
            {"vllm_num_engines": 3, "vllm_tensor_parallel_size": 8},
            "vllm_tensor_parallel_size=8 is more than the 4 GPUs of a node",
        ),
    ],
)
def test_openrlhf_layouts_that_cannot_be(changes: dict[str, Any], part: str) -> None:
    bad = placement({**SEVENTY_B, **changes})
    assert isinstance(bad, OpenRlhfPlacement)
    with pytest.raises(PlacementError, match=part):
        as_groups(bad)


def test_the_pool_of_openrlhf_is_enough_or_refused() -> None:
    """What is told to be enough is enough, and one node fewer is not."""
    for sizes in ({}, {"ref_num_gpus_per_node": 2, "reward_num_gpus_per_node": 2}, {"vllm_num_engines": 5}):
        used = plan(placement({**SEVENTY_B, **sizes}), ALL).nodes
        enough = {**SEVENTY_B, **sizes, "pool": {"nodes": used, "gpus_per_node": 4}}
        assert plan(placement(enough), ALL).nodes == used
        with pytest.raises(PlacementError, match=rf"placement\.pool\.nodes={used - 1} is too few.*use nodes: {used}"):
            as_groups(placement({**enough, "pool": {"nodes": used - 1, "gpus_per_node": 4}}))


def test_cpus_are_told_in_openrlhfs_words() -> None:
    few = {**SEVENTY_B, "pool": {"nodes": 8, "gpus_per_node": 4, "cpus_per_node": 4}}
    with pytest.raises(
        PlacementError, match=r"^placement\.pool\.cpus_per_node=4 is less than the 8 CPUs .* cpus_per_rank"
    ):
        plan(placement(few), ALL)


def test_no_nodes_for_a_reward_without_a_model() -> None:
    sizes = {f"{role}_num_gpus_per_node": 4 for role in ("actor", "critic", "ref")}
    small = placement({"type": "openrlhf", **sizes, "reward_num_nodes": 0, "colocate_critic_reward": True})
    made = as_groups(small)
    assert {role for group in made.groups.values() for role in group.roles} == {"actor", "critic", "reference"}
    assert (made.pools["gpus"].nodes, made.pools["gpus"].gpus_per_node) == (4, 4)


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
