"""Runs as jobs on a real Ray head with its dashboard, which asks for a token; the code travels with the upload.

The head's `tetrarch` is what a container image has: a script that starts `python -m orchestrator` where it stands. The
copy that is uploaded says of itself, in the driver and in vLLM's child processes, where it was imported from.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from configs.tiny.inputs import write
from roles.transfer.connect import quiet_port

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TOKEN = "a-token-that-nobody-may-see"
TINY = [
    *("configs/tiny.yaml", "steps=1", "prompts.heldout=null", "evaluation.every=0", "checkpoint.every=0"),
    *("critic={}", "ppo.advantage={type: rloo}", "rollout.responses_per_prompt=2"),  # a role less to start
    *("reward_training=null", "reward={type: function, path: configs/tiny/reward.py}", "rollout.prompts_per_step=4"),
    *(f"placement.{group}.ranks=1" for group in ("actor", "critic", "reward", "reference", "rollout")),
]
UNPACKED = "/runtime_resources/working_dir_files/"


@dataclass(frozen=True, slots=True)
class Head:
    """A Ray head, and what a user of it has."""

    address: str
    """Of its dashboard."""
    copy: Path
    """The folder that is uploaded."""
    shared: Path
    """What stands for storage that all nodes share."""
    environment: dict[str, str]

    def start(self, *words: str, token: bool = True) -> subprocess.Popen[str]:
        environment = dict(self.environment)
        if not token:
            environment = {name: value for name, value in environment.items() if not name.startswith("RAY_AUTH")}
        return subprocess.Popen(
            [*words],
            cwd=self.copy,
            env=environment,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )

    def run(self, *words: str, token: bool = True) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        with self.start(*words, token=token) as process:
            out, err = process.communicate(timeout=600)
        assert TOKEN not in out + err
        return process.returncode, out, err

    def submit(self, *words: str, token: bool = True) -> tuple[int, str, str]:
        return self.run(f"{BIN}/tetrarch", "submit", "--address", self.address, *self.tiny(), *words, token=token)

    def tiny(self) -> list[str]:
        return [*TINY, f"actor.model.path={self.shared}/policy", f"prompts.train.path={self.shared}/train.jsonl"]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    home = Path(tempfile.mkdtemp(prefix="tetrarch-", dir="/tmp"))  # the names of Ray's sockets must stay short
    ports = list[int]()
    while len(ports) < 5:
        ports += {quiet_port()} - {*ports}
    agent = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port")
    names = ("port", "dashboard-port", *agent)
    (home / "token").write_text(TOKEN)
    launcher = home / "bin/tetrarch"
    launcher.parent.mkdir()
    launcher.write_text('#!/bin/sh\nexec python -m orchestrator "$@"\n')
    launcher.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{home}/token", "RAY_USAGE_STATS_ENABLED": "0"}
    process = subprocess.Popen(
        [
            *(f"{BIN}/ray", "start", "--head", "--block", "--num-cpus=8", f"--temp-dir={home}/ray"),
            *("--object-store-memory=200000000", "--include-dashboard=true"),
            *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
        ],
        cwd=home,
        env=environment | {"PATH": f"{launcher.parent}:{BIN}:{os.environ['PATH']}"},
        stdout=(home / "head.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        head = Head(f"http://127.0.0.1:{ports[1]}", home / "copy", home / "shared", environment)
        copy_code(head.copy)
        write(head.shared)
        wait_for_node(head, home / "head.log")
        yield head
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(40)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)
        shutil.rmtree(home, ignore_errors=True)


def copy_code(copy: Path) -> None:
    """What git would give, marked."""
    for package in ("orchestrator", "roles", "cluster", "configs"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for module in ("orchestrator/commands/app.py", "roles/transfer/vllm_worker.py"):
        first, rest = (copy / module).read_text().split("from __future__ import annotations\n")
        mark = 'import os\nprint(f"marked: {__file__} in process {os.getpid()}", flush=True)\n'
        (copy / module).write_text(f"{first}from __future__ import annotations\n{mark}{rest}")


LOOK = """
import sys, time
from cluster.errors import ClusterUnreachable
from cluster.runtime.jobs import RayJobs

for _ in range(60):
    try:
        nodes = RayJobs(sys.argv[1]).nodes()
    except ClusterUnreachable as error:
        nodes = []
        print(error)
    if nodes:
        assert nodes[0].cpus == 8 and nodes[0].memory_gib > 0.5, nodes
        break
    time.sleep(1)
else:
    sys.exit("no node came")
"""


def wait_for_node(head: Head, log: Path) -> None:
    """In a process of its own: Ray reads how it shall authenticate once in the life of a process."""
    code, out, err = head.run(sys.executable, "-c", LOOK, head.address)
    assert code == 0, out + err + log.read_text()


def jobs_of(head: Head) -> list[str]:
    """Those in Ray's own list."""
    token = {"Authorization": f"Bearer {TOKEN}"}
    answer = httpx.get(f"{head.address}/api/jobs/", headers=token, trust_env=False, timeout=60)
    return [job["submission_id"] for job in answer.raise_for_status().json()]


def test_ray_job_submit_trains_with_the_uploaded_code(head: Head) -> None:
    """In vLLM's child processes too: the engine has two, which in the second step sample from what was pushed."""
    run_dir = head.shared / "runs/first"
    words = [*head.tiny(), f"run_dir={run_dir}", "placement.rollout.tensor_parallel_size=2", "steps=2"]
    submit = [f"{BIN}/ray", "job", "submit", "--address", head.address, "--working-dir", "."]
    code, out, err = head.run(*submit, "--", "tetrarch", "train", *words)
    assert code == 0, out + err
    driver = re.findall(r"marked: (\S+) in process", out)
    assert driver and all(UNPACKED in path for path in driver)
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["weights/version"] for step in steps] == [1, 2]
    assert all(step["engine/logprob_gap_max"] < 1e-4 for step in steps)
    log = (run_dir / "logs/rollout-0.log").read_text()
    marks = re.findall(r"marked: (\S+) in process (\d+)", log)
    assert all(UNPACKED in path and path.endswith("roles/transfer/vllm_worker.py") for path, _ in marks), marks
    own = re.findall(r"^--- rollout rank 0 .*, pid (\d+),", log, re.MULTILINE)
    assert len({process for _, process in marks} - set(own)) == 2, log


@pytest.mark.slow
def test_tetrarch_submit_trains_and_follows_the_log(head: Head) -> None:
    run_dir = head.shared / "runs/second"
    code, out, err = head.submit(f"run_dir={run_dir}")
    assert code == 0, out + err
    assert f"marked: {head.copy}" not in out and UNPACKED in out
    assert out.count("step 1/1") == 1 and f"report: {run_dir}/report.html" in out
    assert "is submitted; its log follows" in err and "succeeded" in err
    assert json.loads((run_dir / "metrics.jsonl").read_text())["weights/version"] == 1


def test_the_code_of_a_run_that_fails_is_ours(head: Head) -> None:
    """The door of the job looks at what is there, on the cluster."""
    code, out, err = head.submit(f"run_dir={head.shared}/runs/third", "prompts.train.path=/no/such/prompts.jsonl")
    assert code == 2, out + err
    assert "/no/such/prompts.jsonl" in out and "failed with exit code 2" in err


def test_what_cannot_run_there_is_refused_before_the_upload(head: Head) -> None:
    before = jobs_of(head)
    shared = f"run_dir={head.shared}/runs/refused"
    with ThreadPoolExecutor() as pool:
        refused = {
            pool.submit(head.submit, shared, "placement.actor.threads=9"): (
                r"the cluster is too small: .*having \S+: 8 CPUs, 0 GPUs"
            ),
            pool.submit(head.submit, "run_dir=runs/mine"): "run_dir=runs/mine is relative",
            pool.submit(head.submit, shared, token=False): (
                "asks for a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
            ),
        }
    for running, part in refused.items():
        code, out, err = running.result()
        assert (code, out) == (2, "") and re.search(part, err), err
    assert before and jobs_of(head) == before


def test_a_job_that_is_interrupted_goes_on_and_one_that_is_stopped_ends_cleanly(head: Head) -> None:
    run_dir = head.shared / "runs/stopped"
    words = [f"{BIN}/tetrarch", "submit", "--address", head.address, *head.tiny(), f"run_dir={run_dir}", "steps=1000"]
    with head.start(*words) as following:
        assert following.stdout is not None and following.stderr is not None
        for line in following.stdout:
            if "starting the roles" in line:
                break
        following.send_signal(signal.SIGINT)
        err = following.stderr.read()
        assert following.wait(60) == 130, err
    job = re.findall(r"stop it: +ray job stop --address \S+ (\S+)", err)
    assert len(job) == 1, err
    logs = [f"{BIN}/ray", "job", "logs", "--address", head.address, job[0]]
    assert head.run(f"{BIN}/ray", "job", "stop", "--address", head.address, job[0])[0] == 0
    _, log, _ = head.run(*logs)
    assert "ended by SIGTERM" in log and "has no checkpoint yet" in log
