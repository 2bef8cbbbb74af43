"""Plans on paper."""

from __future__ import annotations

import pytest

from cluster.config import GroupConfig, LocalEngines, LocalPlacement
from cluster.errors import PlacementError
from cluster.placement.plan import RoleNeed, Slot, plan, ranks_of
from cluster.role_table import ROLES, Role


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


def test_a_local_role_without_a_key_has_one_rank_and_a_member_has_its_ensembles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ROLES, "second", Role("second"))
    placement = LocalPlacement(actor=GroupConfig(ranks=2), reward=GroupConfig(ranks=3))
    roles = ["actor", "reward.helpful", "second"]
    assert [ranks_of(placement, role) for role in roles] == [2, 3, 1]
    assert [len(plan(placement, [RoleNeed(role)]).of(role)) for role in roles] == [2, 3, 1]


def test_a_role_may_bring_its_own_number_of_ranks() -> None:
    made = plan(LocalPlacement(reward=GroupConfig(ranks=2)), [RoleNeed("reward", workers=5)])
    assert [slot.rank for slot in made.slots] == [0, 1, 2, 3, 4]


def test_an_unknown_role_is_named() -> None:
    with pytest.raises(PlacementError, match=r"no group for the role 'jury'; it has actor, critic, "):
        plan(LocalPlacement(), [RoleNeed("jury")])
    with pytest.raises(PlacementError, match="nothing to place"):
        plan(LocalPlacement(), [])
