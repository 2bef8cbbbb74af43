"""docker/slurm.sh, run for real beside commands that only write down how they were called."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "docker" / "slurm.sh"
LOG = 'printf "%s\\n" "$(basename "$0") $*" >>"$FAKES/calls"\n'
FAKES = {
    "scontrol": LOG + "printf 'node-a\\nnode-b\\nnode-c\\n'",
    "srun": 'trap \'echo "srun ended" >>"$FAKES/calls"; exit 143\' TERM\n'
    + LOG
    + '[ -z "${SRUN_FAILS:-}" ] || exit 1\nwhile true; do /bin/sleep 0.05; done',
    "sleep": "/bin/sleep 0.05",
    # One node answers first, then all of them; or what NODES says, once Ray has been started there.
    "python": 'started() { grep -c "^srun .*ray start" "$FAKES/calls"; }\necho >>"$FAKES/asked"\n'
    'if [ -z "${NODES:-}" ]; then started | sed s/2/3/; exit; fi\n'
    'asked=$(wc -l <"$FAKES/asked"); [ "$asked" -le $((NODES + 1)) ] || asked=$((NODES + 1))\n'
    'until [ "$(started)" -ge "$asked" ]; do /bin/sleep 0.05; done\necho "$NODES"',
    "tetrarch": LOG + 'echo "RAY_ADDRESS=$RAY_ADDRESS RAY_AUTH_MODE=$RAY_AUTH_MODE" >>"$FAKES/calls"\n'
    'stat -c "%a %s" "$RAY_AUTH_TOKEN_PATH" >>"$FAKES/calls"\n'
    'if [ -n "${HANGS:-}" ]; then trap "exit 143" TERM; echo hangs >>"$FAKES/calls"\n'
    "while true; do /bin/sleep 0.05; done; fi\n"
    'exit "${CODE:-0}"',
}


class Job:
    """A job's directory and environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, body in FAKES.items():
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/usr/bin/env bash\n{body}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        known = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "node-[a-c]", "SLURM_CPUS_PER_TASK": "64"}
        system = {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "FAKES": str(self.folder),
        }
        return subprocess.Popen(
            ["bash", SCRIPT, *arguments],
            cwd=self.folder,
            env={**known, **system, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        _, errors = process.communicate(timeout=60)
        return process.returncode, errors

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines() if (self.folder / "calls").exists() else []

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name.startswith(".tetrarch"))


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    made = Job(tmp_path)
    yield made
    assert made.left == [], "the token stays behind"


@pytest.mark.parametrize("code", [0, 1, 2])
def test_calls_in_order_and_the_exit_code(job: Job, code: int) -> None:
    ended, errors = job.run("configs/mine.yaml", "steps=3 or so", CODE=str(code))
    assert (ended, errors) == (code, "")
    step = "--cpus-per-task=64"
    assert job.calls == [
        "scontrol show hostnames node-[a-c]",
        f"srun --nodes=1 --ntasks=1 {step} --nodelist=node-a ray start --head --block --port=6379 "
        "--dashboard-host=127.0.0.1",
        f"srun --nodes=2 --ntasks=2 {step} --exclude=node-a ray start --block --address=node-a:6379",
        "tetrarch train configs/mine.yaml deadlines.grace_s=270 steps=3 or so",
        "RAY_ADDRESS=node-a:6379 RAY_AUTH_MODE=token",
        "600 64",
        "srun ended",
        "srun ended",
    ]


def test_nodes_that_do_not_join_end_the_job_in_time(job: Job) -> None:
    code, errors = job.run("configs/mine.yaml", NODES="1", JOIN_S="1")
    assert code == 1
    assert "1 of 3 nodes joined Ray within 1 s" in errors and "JOIN_S=900 sbatch" in errors
    assert not [call for call in job.calls if call.startswith("tetrarch")]
    assert job.calls.count("srun ended") == 2


def test_a_ray_that_ends_at_once_is_not_waited_for(job: Job) -> None:
    began = time.monotonic()
    code, errors = job.run("configs/mine.yaml", NODES="0", SRUN_FAILS="1")
    assert code == 1 and "Ray ended on a node before all had joined (0 of 1)" in errors
    assert time.monotonic() - began < 60


def test_sigterm_reaches_the_training_and_its_code_comes_back(job: Job) -> None:
    process = job.start("configs/mine.yaml", HANGS="1")
    deadline = time.monotonic() + 60
    while "hangs" not in job.calls:
        assert time.monotonic() < deadline, job.calls
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 143
    assert job.calls.count("srun ended") == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [([], {}, "no configuration given; sbatch docker/slurm.sh configs/"), (["a.yaml"], {"SLURM_JOB_ID": ""}, "a job")],
)
def test_a_wrong_call_says_how_to_call_it(
    job: Job, arguments: list[str], environment: dict[str, str], says: str
) -> None:
    code, errors = job.run(*arguments, **environment)
    assert code == 1 and says in errors and job.calls == []


def test_the_directives_ask_for_the_cluster_of_the_example() -> None:
    text = SCRIPT.read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.M))
    assert (directives["nodes"], directives["gpus-per-node"], directives["ntasks-per-node"]) == ("2", "8", "1")
    assert "exclusive" in directives and directives["signal"].startswith("B:TERM@")
    first_command = next(line for line in text.splitlines()[1:] if line and not line.startswith("#"))
    assert first_command == "set -euo pipefail"
    assert text.index("#SBATCH --output") < text.index(first_command)
