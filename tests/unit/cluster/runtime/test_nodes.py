"""What is said of a cluster's nodes and of the room there, by stand-ins for Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.placement.plan import Plan, Slot
from cluster.runtime import living_nodes, nodes, ray_cluster
from cluster.runtime.ray_cluster import RayCluster


def test_the_clock_of_a_node_is_that_of_the_quickest_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is late with some of them."""
    now, late_s = [1000.0], [9.0, 0.0, 5.0, 7.0]

    def remote() -> float:
        theirs = now[0] + 3.0
        now[0] += 0.001 + late_s.pop(0)
        return theirs

    monkeypatch.setattr(nodes, "time", SimpleNamespace(time=lambda: now[0]))
    monkeypatch.setattr(nodes, "ray", SimpleNamespace(get=lambda answer, timeout: answer))
    monkeypatch.setattr(nodes, "_on", lambda node, function: SimpleNamespace(remote=remote))
    assert nodes._skew("node") == pytest.approx(3.0, abs=0.001) and not late_s


def test_a_node_that_has_just_joined_has_no_room_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray names it among the nodes before it says what is free there."""
    both = [{"NodeID": name, "Alive": True, "NodeManagerHostname": name, "Resources": {"CPU": 8.0}} for name in "ab"]
    monkeypatch.setattr(living_nodes, "ray", SimpleNamespace(nodes=lambda: both))
    monkeypatch.setattr(living_nodes, "available_resources_per_node", lambda: {"a": {"CPU": 5.0}})
    assert [(node.name, node.cpus) for node in living_nodes.living_nodes(free=True)] == [("a", 5.0), ("b", 0.0)]
    assert [node.cpus for node in living_nodes.living_nodes(free=False)] == [8.0, 8.0]


def test_what_is_granted_late_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The named node has no room any more: what was asked for is there, a moment after the wait for it ran out."""
    rooms, asked, given_up = [["a"], []], list[Any](), list[Any]()
    answers = [["PENDING", "PENDING"], ["PENDING", "CREATED", "CREATED"]]
    groups = [SimpleNamespace(wait=lambda seconds: False, states=own) for own in answers]

    def placement_group(*arguments: Any, bundle_label_selector: Any = None, **more: Any) -> Any:
        asked.append(bundle_label_selector)
        return groups[len(asked) - 1]

    cluster = RayCluster(Plan((Slot("actor", 0, 0, 1, 1),), ("a",), ("",)), deadline_s=600)
    monkeypatch.setattr(ray_cluster, "placement_group", placement_group)
    monkeypatch.setattr(ray_cluster, "placement_group_table", lambda group: {"state": group.states.pop(0)})
    monkeypatch.setattr(ray_cluster, "remove_placement_group", given_up.append)
    monkeypatch.setattr(ray_cluster, "check_capacity", lambda *arguments: None)
    monkeypatch.setattr(ray_cluster, "living_nodes", lambda **more: [])
    monkeypatch.setattr(cluster, "_room", lambda: ([], rooms.pop(0)))
    cluster._grant([{"CPU": 1.0}])
    assert asked == [None, [{ray_cluster.NODE_ID: "a"}]] and given_up == groups[:1] and not any(answers)
