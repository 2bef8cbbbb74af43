"""A node that is lost: where its planned node goes, and what is said if there is no room, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import NodeLost
from cluster.placement.plan import Plan, Slot
from cluster.runtime import granted_nodes as module
from cluster.runtime import living_nodes
from cluster.runtime.granted_nodes import GrantedNode, granted_again

PLAN = Plan(tuple(Slot("rollout", n, n, 4, 4, (0,)) for n in range(2)), ("a",) * 2, ("",) * 2)
BEFORE = [GrantedNode("host-0", "id-0", ["0"]), GrantedNode("host-1", "id-1", ["0"])]


@dataclass
class Nodes:
    """Ray's nodes; each look at them is a moment later."""

    alive: dict[str, bool]
    answering: set[str]
    homes: dict[int, str] = field(default_factory=lambda: {0: "id-0", 1: "id-1"})
    state: str = "CREATED"
    later: list[Callable[[Nodes], None]] = field(default_factory=list)
    """What happens before the next looks."""

    def nodes(self) -> list[dict[str, Any]]:
        if self.later:
            self.later.pop(0)(self)
        has = {"CPU": 8.0, "GPU": 1.0, "memory": 2.0**33}
        return [
            {"NodeID": own, "Alive": alive, "NodeManagerHostname": own.replace("id", "host"), "Resources": has}
            for own, alive in self.alive.items()
        ]


@pytest.fixture
def see(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Nodes]:
    def begin(alive: dict[str, bool], **more: Any) -> Nodes:
        seen = Nodes(alive, **{"answering": {own for own, alive in alive.items() if alive}, **more})
        monkeypatch.setattr(module.ray, "nodes", seen.nodes)
        monkeypatch.setattr(
            module, "placement_group_table", lambda group: {"state": seen.state, "bundles_to_node_id": seen.homes}
        )
        monkeypatch.setattr(module, "_answers", lambda node: node["NodeID"] in seen.answering)
        monkeypatch.setattr(module, "_gpu_ids", lambda group, plan, nodes, s: {n: [f"card of {n}"] for n in nodes})
        monkeypatch.setattr(module, "NODE_POLL_S", 0.0)
        free = {own: {"CPU": 8.0} for own in alive}
        monkeypatch.setattr(living_nodes, "available_resources_per_node", lambda: free)
        return seen

    return begin


GROUP: Any = None


def again(
    deadline_s: float, needed: tuple[int, ...] = (0, 1), *, bound: bool = False, told: list[str] | None = None
) -> list[GrantedNode]:
    tell = (told if told is not None else list[str]()).append
    return granted_again(GROUP, PLAN, BEFORE, needed, bound=bound, deadline_s=deadline_s, tell=tell)


def test_nodes_that_live_stay(see: Callable[..., Nodes]) -> None:
    see({"id-0": True, "id-1": True})
    assert again(9.0) == BEFORE


def test_what_ran_on_a_lost_node_has_the_one_that_ray_has_put_it_on(see: Callable[..., Nodes]) -> None:
    """Ray notices the loss after a while, and moves it after another while."""

    def noticed(seen: Nodes) -> None:
        seen.alive["id-1"], seen.state = False, "RESCHEDULING"

    def moved(seen: Nodes) -> None:
        seen.homes[1], seen.state = "id-2", "CREATED"

    def nothing(seen: Nodes) -> None: ...

    later, told = [nothing, nothing, noticed, nothing, nothing, nothing, moved], list[str]()
    see({"id-0": True, "id-1": True, "id-2": True}, answering={"id-0", "id-2"}, later=later)
    assert again(9.0, told=told) == [BEFORE[0], GrantedNode("host-2", "id-2", ["card of 1"])]
    assert not later
    silent, waits = told
    assert silent == "node host-1 does not answer: Ray is given 60 s to notice that it is lost"
    assert waits.startswith(
        "node host-1 is lost: waiting for room: planned node 1 (rollout; 4 CPUs, 1 GPU) is short of "
    )


def test_a_plan_that_the_nodes_left_cannot_hold_is_told_at_once(see: Callable[..., Nodes]) -> None:
    see({"id-0": True, "id-1": False})
    said = (
        r"node host-1 is lost, and no other one can hold what ran there: asked for 2 x \(4 CPUs.*having host-0: 8 CPUs"
    )
    with pytest.raises(NodeLost, match=said):
        again(999.0)


def test_a_node_that_is_busy_is_waited_for_until_the_deadline(see: Callable[..., Nodes]) -> None:
    see({"id-0": True, "id-1": False, "id-2": True}, state="RESCHEDULING")
    with pytest.raises(NodeLost, match=r"node host-1 is lost, and no other one had room within 0\.05 s"):
        again(0.05)


def test_what_is_waited_for_is_told_at_once_and_then_every_minute(
    see: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only nodes without another part of the run count: there, Ray puts nothing more."""
    now, told = [0.0], list[str]()
    monkeypatch.setattr(
        module, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=lambda s: now.append(now.pop() + 7.0))
    )
    see({"id-0": True, "id-1": False, "id-2": True}, state="RESCHEDULING")
    with pytest.raises(NodeLost):
        again(150.0, told=told)
    lacks = "planned node 1 (rollout; 4 CPUs, 1 GPU) is short of 1 GPU on host-2, the nearest"
    waits = f"node host-1 is lost: waiting for room: {lacks}; free are host-2: 8 CPUs, 0 GPUs"
    spent = ["0 s by now, at most 150", "63 s by now, at most 87", "126 s by now, at most 24"]
    assert told == [f"{waits} (for {text} s more)" for text in spent]


def test_a_node_that_ray_does_not_give_up_lives(see: Callable[..., Nodes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process of Ray may be slow."""
    monkeypatch.setattr(module, "NOTICED_S", 0.05)
    see({"id-0": True, "id-1": True}, answering={"id-0"})
    assert again(9.0) == BEFORE


def test_only_nodes_on_which_something_is_started_are_asked(see: Callable[..., Nodes]) -> None:
    see({"id-0": True, "id-1": True, "id-2": False}, answering={"id-0"})
    assert again(9.0, needed=(0,)) == BEFORE
    see({"id-0": True, "id-1": False}, state="RESCHEDULING")
    assert again(9.0, needed=(0,)) == BEFORE, "what is lost there is another restart's"


def test_a_run_that_is_bound_to_its_nodes_is_told_so_at_once(see: Callable[..., Nodes]) -> None:
    see({"id-0": True, "id-1": False, "id-2": True}, state="RESCHEDULING")
    with pytest.raises(NodeLost, match="node host-1 is lost, and what ran there cannot move"):
        again(999.0, bound=True)
