"""A run on a simulated cluster whose nodes are lost one after another."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from configs.tiny.inputs import write
from tests.integration.test_ppo import settings

ROOT = Path(__file__).resolve().parents[2]
PLACEMENT = {
    "type": "groups",
    "pools": {"all": {"nodes": 2, "gpus_per_node": 1, "cpus_per_node": 8, "host_memory_gib": 4}},
    "groups": {
        "models": {"pool": "all", "nodes": 1, "gpus_per_node": 1, "roles": ["actor", "critic", "reference"]},
        "engine": {"pool": "all", "nodes": 1, "gpus_per_node": 1, "engines": {"number": 1}},
    },
}
"""The cards are made up."""
pytestmark = pytest.mark.slow


def steps_of(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def until_step(run: Path, step: int, process: subprocess.Popen[str], said: Path) -> None:
    deadline = time.monotonic() + 200
    while len(steps_of(run)) < step:
        assert process.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)


def lose_the_node_of(rank: str, run: Path, cluster: Cluster) -> None:
    """End all processes of the node on which a rank runs."""
    pid = int(re.findall(r"pid (\d+)", (run / f"logs/{rank}.log").read_text())[-1])
    raylet = psutil.Process(pid).parent()
    (node,) = (
        node
        for node in cluster.worker_nodes
        if node.all_processes["raylet"][0].process.pid == getattr(raylet, "pid", 0)
    )
    cluster.remove_node(node, allow_graceful=False)


def test_a_lost_engine_goes_to_a_spare_node_and_without_one_the_run_ends_by_name(tmp_path: Path) -> None:
    """The engine has a node of its own (with the reward function), and a third node is spare. The weights that it gets
    there are the trainer's; after the second loss the run says from where `--resume` goes on."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    run, said = tmp_path / "run", tmp_path / "said.txt"
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=8, num_gpus=1, object_store_memory=200 * 2**20)
        write(tmp_path)
        words = [sys.executable, "-m", "orchestrator", "train", "configs/tiny.yaml", *settings(tmp_path)]
        words += [f"run_dir={run}", f"placement={json.dumps(PLACEMENT)}", "steps=1000", "checkpoint.every=1"]
        words += ["prompts.heldout=null", "evaluation.every=0"]
        environment = {**os.environ, "RAY_ADDRESS": cluster.address}
        with said.open("w") as out:
            process = subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=out, stderr=out)
        try:
            until_step(run, 2, process, said)
            lose_the_node_of("rollout-0", run, cluster)
            moved = len(steps_of(run))
            until_step(run, moved + 3, process, said)
            assert re.search(r"rollout rank 0 .* is back after", said.read_text()), said.read_text()
            lose_the_node_of("rollout-0", run, cluster)
            assert process.wait(200) == 1, said.read_text()
        finally:
            process.kill()
            process.wait()
    finally:
        cluster.shutdown()
    told, lines = said.read_text(), steps_of(run)
    assert [line["weights/version"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(line["engine/logprob_gap_mean"] < 1e-4 for line in lines)
    assert sum(line.get("healing/engine_restarts", 0) for line in lines) == 1
    assert re.search(r"node \S+ is lost, and no other one can hold what ran there: asked for .*; having ", told), told
    stands = re.search(r"step-(\d+)\S* stands; go on from there with --resume", told)
    assert stands and int(stands[1]) == len(lines), told
