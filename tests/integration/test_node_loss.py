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
pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]


class ClusterRun:
    """A run of the tiny configuration on a simulated cluster of three nodes, of which it needs two."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self._said = folder / "run", folder / "said.txt"
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            for _ in range(3):
                self.cluster.add_node(num_cpus=8, num_gpus=1, object_store_memory=200 * 2**20)
            write(folder)
            words = [sys.executable, "-m", "orchestrator", "train", "configs/tiny.yaml", *settings(folder)]
            words += [f"run_dir={self.folder}", f"placement={json.dumps(PLACEMENT)}", "steps=1000"]
            words += ["checkpoint.every=1", "prompts.heldout=null", "evaluation.every=0", *overrides]
            environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
            with self._said.open("w") as out:
                self._process = subprocess.Popen(words, cwd=ROOT, env=environment, text=True, stdout=out, stderr=out)
        except BaseException:
            self.cluster.shutdown()
            raise

    def __enter__(self) -> ClusterRun:
        return self

    def __exit__(self, *unused: object) -> None:
        self._process.kill()
        self._process.wait()
        self.cluster.shutdown()

    @property
    def said(self) -> str:
        return self._said.read_text()

    @property
    def steps(self) -> list[dict[str, Any]]:
        file = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []

    def until_step(self, step: int) -> None:
        deadline = time.monotonic() + 200
        while len(self.steps) < step:
            assert self._process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.1)

    def until_the_end(self) -> int:
        """Its exit code."""
        return self._process.wait(200)

    def lose_the_node_of(self, rank: str) -> None:
        """End all processes of the node on which a rank runs."""
        pid = int(re.findall(r"pid (\d+)", (self.folder / f"logs/{rank}.log").read_text())[-1])
        raylet = psutil.Process(pid).parent()
        (node,) = (
            node
            for node in self.cluster.worker_nodes
            if node.all_processes["raylet"][0].process.pid == getattr(raylet, "pid", 0)
        )
        self.cluster.remove_node(node, allow_graceful=False)

    def check(self) -> None:
        """No step was lost or taken twice, and every one of them trained on what the trainer's own weights gave."""
        steps = self.steps
        assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
        assert [line["weights/version"] for line in steps] == list(range(1, len(steps) + 1))
        assert all(line["engine/logprob_gap_mean"] < 1e-4 for line in steps)


NO_ROOM = r"node \S+ is lost, and no other one can hold what ran there: asked for .*; having "
GOES_ON = r"step-(\d+)\S* stands; go on from there with --resume"


def test_a_lost_engine_goes_to_a_spare_node_and_without_one_the_run_ends_by_name(tmp_path: Path) -> None:
    """The engine has a node of its own (with the reward function), and a third node is spare. The weights that it gets
    there are the trainer's; after the second loss the run says from where `--resume` goes on."""
    with ClusterRun(tmp_path) as run:
        run.until_step(2)
        run.lose_the_node_of("rollout-0")
        run.until_step(len(run.steps) + 3)
        assert re.search(r"rollout rank 0 .* is back after", run.said), run.said
        run.lose_the_node_of("rollout-0")
        assert run.until_the_end() == 1, run.said
        run.check()
        assert sum(line.get("healing/engine_restarts", 0) for line in run.steps) == 1
        assert re.search(NO_ROOM, run.said), run.said
        stands = re.search(GOES_ON, run.said)
        assert stands and int(stands[1]) == len(run.steps), run.said


def test_the_run_of_a_lost_trained_rank_is_placed_anew_and_without_a_node_it_ends_by_name(tmp_path: Path) -> None:
    """With `on_rank_failure: restart`: from the newest checkpoint, on the nodes that are left."""
    with ClusterRun(tmp_path, "recovery.on_rank_failure=restart") as run:
        run.until_step(2)
        run.lose_the_node_of("actor-0")
        run.until_step(len(run.steps) + 3)
        assert sum(line.get("healing/run_restarts", 0) for line in run.steps) == 1
        run.lose_the_node_of("actor-0")
        assert run.until_the_end() == 1, run.said
        run.check()
        stands = re.search(GOES_ON, run.said)
        assert stands and int(stands[1]) == len(run.steps), run.said
        assert "the cluster is too small: asked for" in run.said, run.said
