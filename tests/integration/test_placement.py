"""Plans carried out by Ray's real scheduler on a simulated cluster: eight nodes with four made-up GPUs each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from pydantic import TypeAdapter
from ray.cluster_utils import Cluster

from cluster.calls import wait_all
from cluster.config import PlacementConfig
from cluster.errors import PlacementError
from cluster.nodes import look, nodes_of
from cluster.plan import RoleNeed, plan
from cluster.ray_cluster import RayCluster
from cluster.role_group import RoleGroup
from cluster.worker import version_reader
from configs.tiny.inputs import write
from tests.integration.stub_role import Stub
from tests.unit.cluster.test_groups import SEVENTY_B, check_sound

ROLES = ("rollout", "actor", "critic", "reference", "reward")
NODES, GPUS = 8, 4
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def simulated() -> Iterator[Cluster]:
    node = {"num_cpus": 8, "num_gpus": GPUS, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    for _ in range(NODES - 1):
        cluster.add_node(wait=False, **node)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def test_the_seventy_b_layout_is_placed_as_planned(simulated: Cluster, tmp_path: Path) -> None:
    """34 processes on 32 GPUs: each on its planned node, and shown its planned cards."""
    made = plan(TypeAdapter(PlacementConfig).validate_python(SEVENTY_B), [RoleNeed(role, gpu=True) for role in ROLES])
    check_sound(made, GPUS)
    with RayCluster(made, deadline_s=60, address=simulated.address) as cluster:
        groups = {
            role: RoleGroup.start(role, Stub, [(role,)] * len(made.of(role)), cluster.places(role), log_dir=tmp_path)
            for role in ROLES
        }
        wait_all([group.started for group in groups.values()], 240)
        cluster.check_places(groups.values())
        nodes: dict[int, str] = {}
        for role, group in groups.items():
            seen = group.call(Stub.seen_gpus).result(60)
            for slot, rank, cards in zip(made.of(role), group.ranks, seen, strict=True):
                assert cards == ",".join(map(str, slot.gpus)), (role, slot.rank)
                place = cluster.places(role)[slot.rank]
                assert nodes.setdefault(slot.node, place.node_id) == place.node_id
                assert rank.identity.rank == slot.rank
        assert len(set(nodes.values())) == NODES
        left = ray.available_resources()
        assert left.get("GPU", 0.0) == 0.0
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"critic_num_nodes": 3, "reward_num_nodes": 3}, "the cluster is too small"),
        ({"actor_num_nodes": 1, "actor_num_gpus_per_node": 8}, "the cluster is too small"),
        ({"cpus_per_rank": 5}, "the cluster is too small"),
    ],
    ids=["small", "fragmented", "short of CPUs"],
)
def test_what_no_node_can_hold_is_refused_before_asking(simulated: Cluster, changes: dict[str, int], part: str) -> None:
    data = {**SEVENTY_B, "vllm_num_engines": 2, **changes}
    made = plan(TypeAdapter(PlacementConfig).validate_python(data), [RoleNeed(role, gpu=True) for role in ROLES])
    with (
        pytest.raises(PlacementError, match=part) as error,
        RayCluster(made, deadline_s=60, address=simulated.address),
    ):
        pass
    assert str(error.value).count("8 CPUs, 4 GPUs") >= 1
    assert not ray.is_initialized()


def test_a_pool_of_other_cards_gets_its_own_nodes(tmp_path: Path) -> None:
    """Both nodes have room for either group; only their cards differ, and the first pool is Ray's second node."""
    node = {"num_cpus": 8, "num_gpus": 2, "object_store_memory": 100 * 2**20}
    head = {**node, "include_dashboard": False, "resources": {"accelerator_type:L40S": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(**node, resources={"accelerator_type:H100": 1})
    pools = {
        "fast": {"nodes": 1, "gpus_per_node": 2, "accelerator": "H100-80GB"},
        "cheap": {"nodes": 1, "gpus_per_node": 2, "accelerator": "L40S-48GB"},
    }
    groups = {
        "trained": {"pool": "fast", "gpus_per_node": 2, "roles": ["actor"]},
        "frozen": {"pool": "cheap", "gpus_per_node": 2, "roles": ["reward"]},
    }
    placement = TypeAdapter(PlacementConfig).validate_python({"type": "groups", "pools": pools, "groups": groups})
    made = plan(placement, [RoleNeed("actor", gpu=True), RoleNeed("reward", gpu=True)])
    try:
        with RayCluster(made, deadline_s=60, address=cluster.address) as running:
            cards = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
            for role, card in (("actor", "H100"), ("reward", "L40S")):
                assert {f"accelerator_type:{card}" in cards[place.node_id] for place in running.places(role)} == {True}
    finally:
        cluster.shutdown()


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
    monkeypatch.setattr("cluster.nodes.LOOK_S", 0.0)
    assert all("no process answered within 0 s" in report.problem for report in look(simulated.address))


def test_the_pools_are_read_from_the_running_cluster(simulated: Cluster) -> None:
    nodes = nodes_of(simulated.address)
    assert len(nodes) == NODES and all(node.memory_gib > 0.5 for node in nodes)
    words = [sys.executable, "-m", "orchestrator", "plan", "configs/llama3-70b-32xa800.yaml", "--cluster", "auto"]
    environment = {**os.environ, "RAY_ADDRESS": simulated.address}
    done = subprocess.run(words, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=120)
    assert f"pool gpus: {NODES} nodes with {GPUS} A800-80GB GPUs, 8 CPUs and" in done.stderr
    assert done.returncode == 1, done.stderr  # this machine's memory is not a node's terabyte
