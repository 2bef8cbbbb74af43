"""Plans carried out by Ray's real scheduler on a simulated cluster: eight nodes with eight made-up H100 each, and one
with eight made-up L40S. Every shipped configuration is placed there; the 70B one with all its processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from pydantic import TypeAdapter
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table

from cluster.config import GroupsPlacement, OpenRlhfPlacement, PlacementConfig
from cluster.errors import PlacementError
from cluster.placement.accelerators import ACCELERATORS
from cluster.placement.node import Node
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan, RoleNeed, Slot, plan
from cluster.ranks.calls import wait_all
from cluster.ranks.role_group import RoleGroup
from cluster.ranks.worker import version_reader
from cluster.runtime import ray_cluster
from cluster.runtime.living_nodes import living_nodes
from cluster.runtime.nodes import look, nodes_of
from cluster.runtime.ray_cluster import RayCluster
from configs.tiny.inputs import write
from orchestrator.commands.training_table import TRAININGS, training_of
from orchestrator.config.loading import load_root, served_by
from orchestrator.config.role_needs import role_needs
from orchestrator.config.roots import ROOTS
from tests.integration.stub_role import Stub
from tests.unit.cluster.placement.test_gpu_groups import SEVENTY_B, check_sound

ROLES = ("rollout", "actor", "critic", "reference", "reward")
NODES, CPUS, GPUS = 9, 40, 8
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(file for file in (ROOT / "configs").glob("*.yaml") if TRAININGS.keys() & set(served_by(file)))
STARTED = "llama3-70b-32xa800"


@pytest.fixture(scope="module")
def simulated() -> Iterator[Cluster]:
    """The node with other cards is Ray's first, and has fewer CPUs."""
    node = {"num_cpus": CPUS, "num_gpus": GPUS, "object_store_memory": 100 * 2**20}
    head = {**node, "num_cpus": CPUS - 8, "include_dashboard": False, "resources": {"accelerator_type:L40S": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(NODES - 1):
        cluster.add_node(wait=False, **node, resources={"accelerator_type:H100": 1})
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def planned(name: str, *changes: str) -> Plan:
    file = ROOT / f"configs/{name}.yaml"
    command = training_of(file, (), None)
    config = load_root(ROOTS[command], file, changes)
    return plan(config.placement, role_needs(config, TRAININGS[command].roles(config)[0]))


def check_granted(made: Plan, cluster: RayCluster) -> None:
    """Every rank: on one real node for each planned one, with the right cards, and as many as planned."""
    having = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
    nodes: dict[int, str] = {}
    places = [place for role in made.roles for place in cluster.places(role)]
    assert [place.slot for place in places] == [slot for role in made.roles for slot in made.of(role)]
    for place in places:
        assert nodes.setdefault(place.slot.node, place.node_id) == place.node_id
        assert place.devices == tuple(map(str, place.slot.gpus)), (place.slot.role, place.slot.rank)
        if isinstance(made.placement, GroupsPlacement | OpenRlhfPlacement):
            accelerator = as_groups(made.placement).pools[made.pools[place.slot.node]].accelerator
            assert f"accelerator_type:{ACCELERATORS[accelerator].ray_name}" in having[place.node_id]
    assert len(nodes) == len(set(nodes.values())) == made.nodes
    (group,) = (group for group in placement_group_table().values() if group["state"] == "CREATED")
    real = {bundle: (Counter(asked), group["bundles_to_node_id"][bundle]) for bundle, asked in group["bundles"].items()}
    for node in range(made.nodes):
        asked, where = real[node]
        assert (asked["CPU"], asked["GPU"], where) == (made.demand(node).cpus, made.demand(node).gpus, nodes[node])


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS if path.stem != STARTED])
def test_every_shipped_configuration_is_placed_as_planned(simulated: Cluster, name: str) -> None:
    """Nodes are granted and their GPUs' names asked. The one whose ranks are started too: below."""
    made = planned(name)
    check_sound(made, GPUS)
    with RayCluster(made, deadline_s=60, address=simulated.address) as cluster:
        check_granted(made, cluster)


def test_a_file_that_names_a_card_which_no_node_has_is_refused_before_asking(simulated: Cluster) -> None:
    with (
        pytest.raises(PlacementError, match=r"accelerator=A800-80GB, but Ray reports .* and A800 on none"),
        RayCluster(planned(STARTED), deadline_s=60, address=simulated.address),
    ):
        pass
    assert not ray.is_initialized()


@pytest.mark.slow
def test_the_seventy_b_file_is_placed_as_planned(simulated: Cluster, tmp_path: Path) -> None:
    """34 processes on 32 GPUs: each on its planned node, and shown its planned cards."""
    made = planned(STARTED, "placement.pool.accelerator=H100-80GB")
    check_sound(made, 4)
    with RayCluster(made, deadline_s=60, address=simulated.address) as cluster:
        check_granted(made, cluster)
        groups = {
            role: RoleGroup.start(role, Stub, [(role,)] * len(made.of(role)), cluster.places(role), log_dir=tmp_path)
            for role in ROLES
        }
        wait_all([group.started for group in groups.values()], 240)
        cluster.check_places(groups.values())
        for role, group in groups.items():
            seen = group.call(Stub.seen_gpus).result(60)
            for slot, rank, cards in zip(made.of(role), group.ranks, seen, strict=True):
                assert cards == ",".join(map(str, slot.gpus)), (role, slot.rank)
                assert rank.identity.rank == slot.rank
        assert ray.available_resources()["GPU"] == NODES * GPUS - 32
    assert not ray.is_initialized()


def test_a_mix_that_ray_does_not_find_by_itself_is_granted(simulated: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight ranks need all CPUs of the larger nodes. Ray gives one of these to the small rank, and waits for ever."""
    asked: list[list[dict[str, str]] | None] = []

    def noted(*arguments: Any, bundle_label_selector: list[dict[str, str]] | None = None, **others: Any) -> Any:
        asked.append(bundle_label_selector)
        return placement_group(*arguments, bundle_label_selector=bundle_label_selector, **others)

    monkeypatch.setattr(ray_cluster, "placement_group", noted)
    monkeypatch.setattr(ray_cluster, "RAYS_CHOICE_S", 1.0)
    small = Slot("actor", 0, 0, 8, 8, (0,))
    whole = tuple(Slot("critic", rank, rank + 1, CPUS, CPUS) for rank in range(NODES - 1))
    made = Plan((small, *whole), ("a",) * NODES, ("",) * NODES)
    with RayCluster(made, deadline_s=60, address=simulated.address) as cluster:
        check_granted(made, cluster)
        granted = [node["NodeID"] for node in ray.nodes()]
    free_choice, named = asked  # also if the named nodes are granted late
    assert free_choice is None and named is not None
    assert sorted(label["ray.io/node-id"] for label in named) == sorted(granted)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        (
            {"critic_num_nodes": 4, "reward_num_nodes": 4},
            r"Set placement\.(critic|reward)_num_nodes: 1 \(now 4\), or add 3 nodes of \(4 CPUs, 4 GPUs\)",
        ),
        (
            {"actor_num_nodes": 1, "actor_num_gpus_per_node": 16},
            r"Set placement\.actor_num_gpus_per_node: 8 \(now 16\)",
        ),
        ({"cpus_per_rank": 6}, r"Set placement\.cpus_per_rank: 5 \(now 6\), or give 2 nodes of .*--num-cpus=48"),
    ],
    ids=["small", "fragmented", "short of CPUs"],
)
def test_what_no_node_can_hold_is_refused_before_asking(simulated: Cluster, changes: dict[str, int], fix: str) -> None:
    data = {**SEVENTY_B, "vllm_num_engines": 2, **changes}
    made = plan(TypeAdapter(PlacementConfig).validate_python(data), [RoleNeed(role, gpu=True) for role in ROLES])
    with (
        pytest.raises(PlacementError, match=rf"the cluster is too small.*{fix}") as error,
        RayCluster(made, deadline_s=60, address=simulated.address),
    ):
        pass
    assert "8 x (40 CPUs, 8 H100 GPUs)" in str(error.value)
    assert not ray.is_initialized()


def test_a_busy_cluster_says_what_is_free_and_that_waiting_helps(simulated: Cluster) -> None:
    made = planned("llama3-8b-2x8")
    ray.init(address=simulated.address, log_to_driver=False, logging_level="error")
    other = ray.util.placement_group([{"CPU": 30, "GPU": 4}] * (NODES - 1), strategy="STRICT_SPREAD")
    assert other.wait(60)
    left, until = NODES * CPUS - 8 - 30 * (NODES - 1), time.monotonic() + 60
    while sum(node.cpus for node in living_nodes(free=True)) != left:  # Ray says it a moment later
        assert time.monotonic() < until
        time.sleep(0.1)
    try:
        with pytest.raises(PlacementError, match="no room within 1 s") as error:
            RayCluster(made, deadline_s=1, address=simulated.address)._reserve()
    finally:
        ray.shutdown()
    assert "(10 CPUs, 4 H100 GPUs)" in str(error.value)
    assert "Wait for other jobs to end, or end them" in str(error.value)


def test_a_node_that_is_lost_while_the_run_waits_for_it_ends_the_wait(
    simulated: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray counts a node among the living for seconds after its loss."""
    whole = tuple(Slot("critic", rank, rank, CPUS, CPUS) for rank in range(NODES))
    made = Plan(whole, ("a",) * NODES, ("",) * NODES)
    real, asked = ray_cluster.living_nodes, []

    def living(*, free: bool) -> list[Node]:
        asked.append(free)
        return [Node(f"node {n}", CPUS, 0) for n in range(NODES)] if len(asked) == 1 else real(free=free)

    monkeypatch.setattr(ray_cluster, "living_nodes", living)
    monkeypatch.setattr(ray_cluster, "RAYS_CHOICE_S", 1.0)
    with (
        pytest.raises(PlacementError, match="the cluster is too small"),
        RayCluster(made, deadline_s=60, address=simulated.address),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["split", "colocated"])
def test_the_seventy_b_file_trains_across_nodes(tmp_path: Path, layout: str) -> None:
    """Its model is the tiny one, its groups are what two cores carry, the cards are made up; the rest is real."""
    node = {"num_cpus": 8, "num_gpus": 1, "object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(3 if layout == "split" else 1):
        cluster.add_node(**node)
    write(tmp_path)
    groups = ("actor", "critic", "ref", "reward")
    # Split: each group on a node of its own. Colocated: a rank of each role, and an engine, on each of two nodes.
    nodes = 1 if layout == "split" else 2
    words = [
        *(sys.executable, "-m", "orchestrator", "train", "configs/llama3-70b-32xa800.yaml", f"run_dir={tmp_path}/run"),
        *(
            "device=cpu",
            "dtype=float32",
            "steps=2",
            f"prompts.train.path={tmp_path}/train.jsonl",
            "prompts.max_tokens=32",
        ),
        *(f"actor.model.path={tmp_path}/policy", f"reward.model.path={tmp_path}/reward"),
        *("actor.zero.offload_optimizer=false", "critic.zero.offload_optimizer=false", "checkpoint.every=0"),
        *("rollout={prompts_per_step: 16, max_response_tokens: 8, engine: {kv_cache_gib: 0.1, max_sequences: 16}}",),
        *("ppo.mini_batches=2", "placement.pool=null", "--cluster=auto", f"placement.vllm_num_engines={nodes}"),
        "placement.vllm_tensor_parallel_size=1",
        *(f"placement.{group}_num_nodes={nodes}" for group in groups),
        *(f"placement.{group}_num_gpus_per_node=1" for group in groups),
        f"placement.colocate_all_models={'false' if layout == 'split' else 'true'}",
    ]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    try:
        done = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        cluster.shutdown()
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["weights/version"] for line in lines] == [1, 2]
    assert all(line["engine/logprob_gap_mean"] < 1e-4 for line in lines)


def test_the_doctor_looks_at_every_node(simulated: Cluster) -> None:
    found = look(simulated.address)
    assert len(found) == NODES
    assert all(report.node.gpus == GPUS and abs(report.skew_s) < 0.5 for report in found)
    assert all(report.versions == version_reader()() and not report.problem for report in found)
    assert not ray.is_initialized()


def test_a_node_that_does_not_answer_is_named(simulated: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> None:
        time.sleep(600)

    monkeypatch.setattr("cluster.runtime.nodes.versions", lambda: ray.remote(num_cpus=0)(silent))
    monkeypatch.setattr("cluster.runtime.nodes.LOOK_S", 0.0)
    assert all("no process answered within 0 s" in report.problem for report in look(simulated.address))


def test_the_pools_are_read_from_the_running_cluster(simulated: Cluster) -> None:
    nodes = nodes_of(simulated.address)
    assert len(nodes) == NODES and all(node.memory_gib > 0.5 for node in nodes)
    words = [sys.executable, "-m", "orchestrator", "plan", "configs/llama3-70b-32xa800.yaml", "--cluster", "auto"]
    environment = {**os.environ, "RAY_ADDRESS": simulated.address}
    done = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120)
    assert f"pool gpus: {NODES - 1} nodes with {GPUS} H100-80GB GPUs, {CPUS} CPUs and" in done.stderr
    assert done.returncode == 1, done.stderr  # this machine's memory is not a node's terabyte
