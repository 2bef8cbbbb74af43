"""Plans on paper."""

from __future__ import annotations

import pytest

from cluster.config import GroupConfig, LocalEngines, LocalPlacement
from cluster.errors import PlacementError
from cluster.plan import Node, Plan, RoleNeed, Slot, check_capacity, plan


def test_every_rank_gets_a_slot() -> None:
    rollout = LocalEngines(threads=2, tensor_parallel_size=2)
    placement = LocalPlacement(actor=GroupConfig(ranks=2, threads=3), rollout=rollout)
    made = plan(placement, [RoleNeed("actor", gpu=True), RoleNeed("rollout", gpu=True)])
    assert made.slots == (
        Slot("actor", 0, 0, cpus=3, threads=3, gpus=(0,)),
        Slot("actor", 1, 0, cpus=3, threads=3, gpus=(1,)),
        Slot("rollout", 0, 0, cpus=4, threads=2, gpus=(2, 3)),
    )
    assert made.of("actor") == list(made.slots[:2])
    assert made.nodes == 1
    assert (made.demand(0).cpus, made.demand(0).gpus) == (10, 4)


def test_a_role_may_bring_its_own_number_of_ranks() -> None:
    made = plan(LocalPlacement(reward=GroupConfig(ranks=2)), [RoleNeed("reward", workers=5)])
    assert [slot.rank for slot in made.slots] == [0, 1, 2, 3, 4]


def test_an_unknown_role_is_named() -> None:
    with pytest.raises(PlacementError, match=r"no group for the role 'jury'; it has actor, critic, "):
        plan(LocalPlacement(), [RoleNeed("jury")])
    with pytest.raises(PlacementError, match="nothing to place"):
        plan(LocalPlacement(), [])


def test_capacity_is_checked_node_by_node() -> None:
    two = Plan((Slot("actor", 0, 0, 4, 4, (0, 1)), Slot("critic", 0, 1, 2, 2, (0, 1, 2, 3))), ("a", "a"), ("", ""))
    check_capacity(two, [Node("a", 4, 4), Node("b", 4, 2)])
    with pytest.raises(PlacementError) as error:
        check_capacity(two, [Node("a", 100, 4)])
    assert "planned node 0: 4 CPUs, 2 GPUs; planned node 1: 2 CPUs, 4 GPUs" in str(error.value)
    assert "actor: 1 x 4 CPUs and 2 GPUs; critic: 1 x 2 CPUs and 4 GPUs" in str(error.value)
    assert "having a: 100 CPUs, 4 GPUs" in str(error.value)
    with pytest.raises(PlacementError, match="no node at all"):
        check_capacity(two, [])


def test_fragments_on_several_nodes_do_not_count_as_one() -> None:
    one = Plan((Slot("actor", 0, 0, 2, 2), Slot("actor", 1, 0, 2, 2)))
    with pytest.raises(PlacementError, match="the cluster is too small"):
        check_capacity(one, [Node("a", 3, 0), Node("b", 3, 0)])
