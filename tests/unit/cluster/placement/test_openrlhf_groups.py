"""OpenRLHF's placement keys as groups of GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import OpenRlhfPlacement
from cluster.errors import PlacementError
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import engines_neighbours, plan, ranks_of, tensor_parallel_size
from tests.unit.cluster.placement.test_gpu_groups import ALL, SEVENTY_B, check_sound, placement


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
