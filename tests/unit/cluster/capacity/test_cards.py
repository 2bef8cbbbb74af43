"""A placement that names a card is refused by a cluster that reports others, and asks for its card in a mixed one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from cluster.capacity.cards import asking_for_cards
from cluster.capacity.changes import placement_change
from cluster.config import PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.node import Node
from cluster.placement.plan import Plan, RoleNeed, plan
from tests.unit.cluster.placement.test_gpu_groups import SEVENTY_B

H100, A100, UNSAID, HEAD = (
    Node(name, 16, gpus, card)
    for name, gpus, card in (("h", 2, "H100"), ("a", 2, "A100"), ("u", 2, ""), ("head", 0, ""))
)


def planned(accelerator: str | None, *, gpu: bool = True, nodes: int = 1) -> Plan:
    groups = {"all": {"pool": "own", "nodes": nodes, "gpus_per_node": 2, "roles": ["actor"]}}
    data: dict[str, Any] = {"type": "groups", "groups": groups}
    data["pools"] = {"own": {"nodes": nodes, "gpus_per_node": 2, "accelerator": accelerator}}
    return plan(TypeAdapter(PlacementConfig).validate_python(data), [RoleNeed("actor", gpu=gpu)])


@pytest.mark.parametrize("nodes", [[H100, HEAD], [UNSAID], [H100, UNSAID], []])
def test_where_no_node_reports_another_card_none_is_asked_for(nodes: list[Node]) -> None:
    assert asking_for_cards(planned("H100-80GB"), nodes).cards == ("",)


def test_among_several_kinds_of_nodes_the_named_card_is_asked_for() -> None:
    wanted = planned("H100-80GB", nodes=2)
    assert asking_for_cards(wanted, [A100, H100, UNSAID]).cards == ("H100", "H100")
    assert placement_change(wanted, [A100, H100]) == {"groups.all.nodes": 1}, "the A100 counts for nothing"


def test_a_cluster_of_other_cards_is_refused_with_the_fix() -> None:
    with pytest.raises(PlacementError) as error:
        asking_for_cards(planned("H100-80GB"), [HEAD, UNSAID, A100, A100])
    assert str(error.value) == (
        "placement.pools.own.accelerator=H100-80GB, but Ray reports A100 GPUs on node a and 1 other node, and H100 on "
        "none; set it to A100-40GB or A100-80GB and look at the plan again (or say --cluster auto), or use a cluster "
        "with H100 GPUs"
    )
    with pytest.raises(PlacementError, match="set it to null, and gpu_memory_gib to"):
        asking_for_cards(planned("H100-80GB"), [Node("t", 8, 4, "T4")])


def test_openrlhfs_form_is_told_in_its_own_key() -> None:
    pool = {"nodes": 8, "gpus_per_node": 4, "accelerator": "A800-80GB"}
    made = TypeAdapter(PlacementConfig).validate_python({**SEVENTY_B, "pool": pool})
    wanted = plan(made, [RoleNeed("actor", gpu=True)])
    with pytest.raises(PlacementError, match=r"^placement\.pool\.accelerator=A800-80GB, but Ray reports A100"):
        asking_for_cards(wanted, [A100])


def test_what_names_no_card_or_uses_none_runs_anywhere() -> None:
    for wanted in (planned(None), planned("H100-80GB", gpu=False)):
        assert asking_for_cards(wanted, [A100]) is wanted
