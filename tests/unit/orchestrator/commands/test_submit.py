"""`tetrarch submit` on a cluster of paper: what is refused before the upload, the command, Ctrl-C, exit codes."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

import cluster.runtime.jobs
import orchestrator.commands.submit
from cluster.errors import ClusterUnreachable
from cluster.placement.node import Node
from cluster.runtime import job_follower
from cluster.runtime.job_follower import JobState
from orchestrator.checks.run_folders import check_lasting
from orchestrator.commands import app as cli
from orchestrator.commands.exit_codes import Outcome
from orchestrator.commands.submit import check_travels, follow, in_working_dir
from orchestrator.commands.train_commands import training_command
from orchestrator.commands.training_table import TRAININGS, Training
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import load_config
from orchestrator.config.roots import ROOTS
from orchestrator.errors import ConfigError
from orchestrator.run.resume_rules import RESUME_RULES

CONFIG = """
run_dir: /shared/runs/mine
steps: 10
device: cpu
prompts: {train: {path: prompts.jsonl}, max_tokens: 64}
actor: {model: {path: policy}}
reward: {type: remote, urls: ["http://scorer/score"], headers: {authorization: Bearer hush}}
critic: {model: {path: policy}}
rollout: {prompts_per_step: 8, max_response_tokens: 16}
"""
REWARD_TRAINING = """
reward_training:
  output: /shared/models/taste
  model: {path: policy}
  pairs: {type: dataset, dataset: {path: pairs.jsonl}}
"""
ON_POOLS = [
    "placement={type: groups, pools: {any: {nodes: 1, gpus_per_node: 1}}, groups: {"
    "all: {pool: any, gpus_per_node: 2, roles: [actor, critic, reference], engines: {number: 2}}}}"
]


class PaperCluster:
    """Notes what is asked of it. `log`: what its jobs write, an exception interrupts; `states`: how they stand."""

    address = "http://head:8265"

    def __init__(self, log: Sequence[str | BaseException] = (), states: Sequence[JobState] = ()) -> None:
        self.pieces, self.states = list(log), list(states) or [JobState("SUCCEEDED", 0)]
        self.submitted: list[tuple[str, list[str], Path]] = []
        self.stopped: list[str] = []
        self.having = [Node("big", 64, 0)]

    def nodes(self) -> list[Node]:
        return self.having

    def submit(self, name: str, command: Sequence[str], working_dir: Path, stop_s: float) -> str:
        self.submitted.append((name, list(command), working_dir))
        self.stop_s = stop_s
        return name

    def log(self, job: str) -> Iterator[str]:
        while self.pieces:
            piece = self.pieces.pop(0)
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def state(self, job: str) -> JobState:
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def stop(self, job: str) -> None:
        self.stopped.append(job)


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> PaperCluster:
    paper = PaperCluster(["step 1\n"])
    monkeypatch.setattr(cluster.runtime.jobs, "RayJobs", lambda address: paper)
    monkeypatch.setattr(job_follower, "RETRY_S", 0.0)
    return paper


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working directory."""
    for folder in ("configs", "policy"):
        (tmp_path / folder).mkdir()
    for file in ("prompts.jsonl", "pairs.jsonl", "judge.py"):
        (tmp_path / file).touch()
    (tmp_path / "policy/config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "configs/run.yaml").write_text(CONFIG)
    return tmp_path


def submit(home: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.app, ["submit", str(home / "configs/run.yaml"), "--working-dir", str(home), *words])


def test_the_job_runs_the_uploaded_code_with_the_same_words(home: Path, paper: PaperCluster) -> None:
    result = submit(home, "rollout={prompts_per_step: 4, max_response_tokens: 16}", "--resume", "--force")
    assert result.exit_code == 0, result.output
    (name, command, folder), override = paper.submitted[0], "rollout={prompts_per_step: 4, max_response_tokens: 16}"
    assert command == [*("python", "-m", "orchestrator", "train", "configs/run.yaml", override, "--resume", "--force")]
    assert shlex.split(shlex.join(command)) == command
    assert name.startswith("mine-") and folder == home.resolve()
    assert result.stdout == "step 1\n"
    assert "has no orchestrator/" in result.stderr and f"{name} succeeded" in result.stderr


@pytest.mark.parametrize(("words", "stop_s"), [((), 60), (("deadlines.grace_s=600",), 630)])
def test_a_job_that_is_stopped_has_the_time_that_its_configuration_wants(
    words: tuple[str, ...], stop_s: float, home: Path, paper: PaperCluster
) -> None:
    assert submit(home, *words).exit_code == 0 and paper.stop_s == stop_s


LABELLING = """
labelling:
  output: /shared/feedback
  data: {path: pairs.jsonl}
  judge: {type: model, model: {path: policy}}
"""


@pytest.mark.parametrize("command", ["evaluate", "best-of-n"])
def test_a_command_that_trains_nothing_is_submitted_too(home: Path, paper: PaperCluster, command: str) -> None:
    result = submit(home, "evaluation.prompts=8", "--command", command)
    assert result.exit_code == 0, result.output
    words = ["python", "-m", "orchestrator", command, "configs/run.yaml", "evaluation.prompts=8"]
    assert paper.submitted[0][1] == words
    paper.having = [Node("none", 0, 0)]
    assert submit(home, "--command", command).exit_code == 2 and len(paper.submitted) == 1


def test_a_file_for_labelling_alone_is_submitted_as_that(home: Path, paper: PaperCluster) -> None:
    (home / "configs/run.yaml").write_text(LABELLING)
    assert submit(home).exit_code == 0
    assert paper.submitted[0][1] == ["python", "-m", "orchestrator", "label", "configs/run.yaml"]
    for flag in ("--resume", "--force", "--cluster=auto"):
        result = submit(home, flag)
        assert result.exit_code == 2 and f"{flag} is for commands that train" in result.stderr
    assert "labelling.output=feedback is relative" in submit(home, "labelling.output=feedback").stderr
    assert "labelling.data.path=none.jsonl" in submit(home, "labelling.data.path=none.jsonl").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["rollout.max_response_tokens=60"],
            "max_response_tokens=60 is 124 tokens, more than the 64 that actor.model",
        ),
        (["sft.max_tokens=65", "--command", "sft"], "sft.max_tokens=65 is 65 tokens, more than the 64 that sft.model"),
    ],
)
def test_samples_longer_than_a_model_reads_are_told_before_the_job(
    home: Path, paper: PaperCluster, words: list[str], said: str
) -> None:
    model = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 64}
    (home / "policy/config.json").write_text(json.dumps(model))
    sft = "sft: {output: /shared/tuned, model: {path: policy}, data: {path: pairs.jsonl}}\n"
    (home / "configs/run.yaml").write_text(CONFIG + sft)
    result = submit(home, *words)
    assert result.exit_code == 2 and said in result.stderr, result.output
    assert paper.submitted == []


def test_a_cluster_of_other_cards_than_the_file_names_is_told_before_the_job(home: Path, paper: PaperCluster) -> None:
    placement = ON_POOLS[0].replace("gpus_per_node: 1}", "gpus_per_node: 2, accelerator: H100-80GB}")
    words = ["device=cuda", "dtype=bfloat16", placement, "--force"]
    paper.having = [Node("big", 64, 2, "A100")]
    result = submit(home, *words)
    assert result.exit_code == 2 and "accelerator=H100-80GB, but Ray reports A100 GPUs on node big" in result.stderr
    paper.having = [Node("big", 64, 2, "H100")]
    assert submit(home, *words).exit_code == 0 and len(paper.submitted) == 1


# Which training


def job(home: Path, paper: PaperCluster, *words: str) -> tuple[str, str]:
    """The command that the job runs, and the job's name."""
    result = submit(home, *words)
    assert result.exit_code == 0, result.output
    name, command, _ = paper.submitted[-1]
    assert command[4] == "configs/run.yaml"
    return command[3], name.rpartition("-")[0]


def test_the_job_runs_the_training_that_the_file_is_for(home: Path, paper: PaperCluster) -> None:
    (home / "configs/run.yaml").write_text(REWARD_TRAINING)
    assert job(home, paper) == ("reward", "taste-run")
    (home / "configs/run.yaml").write_text(CONFIG + REWARD_TRAINING)
    assert job(home, paper) == ("train", "mine")
    assert job(home, paper, "--command", "reward") == ("reward", "taste-run")


@pytest.mark.parametrize(
    ("word", "part"),
    [
        ("reward_training.output=made/taste", "reward_training.output=made/taste is relative"),
        ("reward={type: remote, headers: {a: 'Bearer other'}}", "override of reward holds a secret"),
    ],
)
def test_what_a_training_would_lose_or_show(home: Path, paper: PaperCluster, word: str, part: str) -> None:
    """Also of the sections that only other commands read."""
    (home / "configs/run.yaml").write_text(REWARD_TRAINING)
    result = submit(home, word, "--command", "reward")
    assert result.exit_code == 2 and part in result.stderr and "other" not in result.output


def test_what_can_be_trained_can_go_on() -> None:
    assert {ROOTS[name] for name in TRAININGS} == set(RESUME_RULES)


def test_a_training_that_nobody_knows(home: Path, paper: PaperCluster) -> None:
    result = submit(home, "--command", "rewrd")
    assert result.exit_code == 2 and "--command=rewrd: must be one of train, reward" in result.stderr


def test_a_new_training_costs_a_row(home: Path, paper: PaperCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A root, and a row (what starts it, its layouts): `tetrarch count`, and `tetrarch submit` of it."""

    class CountRun(BaseConfig):
        """Counts."""

        @property
        def model_roles(self) -> tuple[str, ...]:
            return ("actor",)

    def start(config: CountRun, resume: object, report: Outcome) -> None:
        """Count to three."""
        print(f"1 2 3 into {config.run_dir}, after {resume}")

    monkeypatch.setitem(ROOTS, "count", CountRun)
    monkeypatch.setitem(TRAININGS, "count", Training(start, lambda config, efficiency: []))
    (home / "configs/run.yaml").write_text("run_dir: /shared/counted")
    app = typer.Typer()
    app.command("count")(training_command("count"))
    counted = CliRunner().invoke(app, [str(home / "configs/run.yaml"), "--resume"])
    assert counted.stdout == "1 2 3 into /shared/counted, after newest\n", counted.output
    assert "Count to three." in CliRunner().invoke(app, ["--help"]).stdout
    assert job(home, paper) == ("count", "counted")
    too_large = submit(home, "placement={type: local, actor: {threads: 99}}")
    assert too_large.exit_code == 2 and "the cluster is too small" in too_large.stderr
    (home / "configs/run.yaml").write_text(REWARD_TRAINING + "run_dir: /shared/counted")
    assert job(home, paper, "--command", "count") == ("count", "counted")
    unclear = submit(home)
    assert unclear.exit_code == 2 and "is for reward and for count; say which one: --command" in unclear.stderr


def test_engines_that_make_the_pairs_and_the_reward_model_after_them_need_no_room_at_once(
    home: Path, paper: PaperCluster
) -> None:
    pairs = "reward_training.pairs={type: sampled, judge: {path: judge.py, name: judge, workers: 2}}"
    (home / "configs/run.yaml").write_text(CONFIG + REWARD_TRAINING)
    words = ["--command", "reward", pairs, "placement={type: local, reward: {threads: 4}, rollout: {threads: 1}}"]
    paper.having = [Node("big", 4, 0)]
    assert job(home, paper, *words) == ("reward", "taste-run")
    paper.having = [Node("big", 3, 0)]
    result = submit(home, *words)
    assert result.exit_code == 2
    assert "the cluster is too small: asked for planned node 0: 4 CPUs, 0 GPUs (reward" in result.stderr


@pytest.mark.parametrize(
    "state", [JobState("FAILED", 2), JobState("FAILED", None, "no node left"), JobState("STOPPED")]
)
def test_the_exit_code_is_the_jobs(home: Path, paper: PaperCluster, state: JobState) -> None:
    paper.states = [state]
    result = submit(home)
    assert result.exit_code == state.exit_code
    assert state.message in result.stderr
    assert ("was stopped" if state.status == "STOPPED" else f"failed with exit code {state.exit_code}") in result.stderr


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run_dir=runs/mine"], "run_dir=runs/mine is relative.*such as run_dir=/shared/runs/mine"),
        (["placement.actor.threads=99"], r"the cluster is too small: asked for .*having big: 64 CPUs, 0 GPUs"),
        (["reward.headers.authorization=Bearer hush"], "override of reward.headers.authorization holds a secret"),
        (["reward.headers={authorization: 'Bearer other'}"], "override of reward.headers holds a secret"),
        (["reward.urls=['http://me:hush@scorer/score']"], "override of reward.urls holds a secret"),
        (["--cluster", "auto"], "type: local has none"),
        (["steps=0"], "steps=0"),
        (["prompts.train.path=../x.jsonl"], r"prompts.train.path=../x.jsonl does not exist \(relative paths start at"),
        (["prompts.train.path=../"], "prompts.train.path=../ is outside the working directory"),
        (["prompts.heldout.path=runs/in/h.jsonl"], "heldout.path=runs/in/h.jsonl is not uploaded: .gitignore or"),
        (["actor.model.path=runs/in"], r"actor.model.path=runs/in is not uploaded \(h.jsonl\): .* an absolute path"),
        (["critic.model.path=weights"], r"critic.model.path=weights is not uploaded \(model.bin\)"),
        (["reward={type: function, path: score.py}"], "reward.path=score.py does not exist"),
        (
            ["reward={type: ensemble, members: {a: {type: function, path: a.py}, b: {type: function, path: b.py}}}"],
            "reward.members.a.path=a.py does not exist.*reward.members.b.path=b.py does not exist",
        ),
        (["environment={path: nested/deep/env.py, max_tokens: 96}"], "environment.path=nested/deep/env.py is not up"),
        (
            ["actor.model.layers=1", ON_POOLS[0].replace("gpus_per_node: 1}", "gpus_per_node: 2}")],
            r"model_cache=runs/models is relative, and the model that is converted there \(actor.model\)",
        ),
    ],
)
def test_what_is_wrong_is_refused_before_the_upload(
    home: Path, paper: PaperCluster, words: list[str], part: str
) -> None:
    (home / ".gitignore").write_text("/runs\n!in\n!h.jsonl\n*.bin\n")
    for file in ("runs/in/h.jsonl", "weights/model.bin", "nested/deep/env.py"):
        (home / file).parent.mkdir(parents=True)
        (home / file).touch()
    (home / "nested/.rayignore").write_text("deep\n")
    result = submit(home, *words)
    assert result.exit_code == 2, result.output
    assert re.search(part, result.stderr.replace("\n", " "))
    assert "hush" not in result.output and "other" not in result.output
    assert paper.submitted == []


def test_what_a_job_finds_where_it_runs_is_not_looked_for_here(home: Path, paper: PaperCluster) -> None:
    words = ["actor.model.path=owner/model", "prompts.train.path=/shared/none.jsonl", "prompts.heldout.path=owner/data"]
    assert submit(home, *words).exit_code == 0


def test_a_secret_in_the_file_travels_with_it(home: Path) -> None:
    check_travels(load_config(home / "configs/run.yaml"), ["steps=3"])


def test_an_override_may_be_for_another_command_of_the_file(home: Path) -> None:
    words = ["reward_training.max_tokens=8"]
    check_travels(load_config(home / "configs/run.yaml", words), words)


def test_the_configuration_must_travel(home: Path, tmp_path: Path) -> None:
    assert in_working_dir(home / "configs/run.yaml", home) == Path("configs/run.yaml")
    with pytest.raises(ConfigError, match="is not in the working directory"):
        in_working_dir(home / "configs/run.yaml", Path(__file__).parent)
    with pytest.raises(ConfigError, match="is not a folder"):
        in_working_dir(home / "configs/run.yaml", home / "none")


def test_the_pools_are_those_of_the_cluster_at_the_address(home: Path, paper: PaperCluster) -> None:
    paper.having = [Node(f"n{n}", 32, 4, "H100", 200.0) for n in range(2)]
    refused = submit(home, *ON_POOLS)
    assert refused.exit_code == 2 and "gpus_per_node=2 is more than the 1" in refused.stderr
    too_small = ["device=cpu", ON_POOLS[0].replace("gpus_per_node: 1}", "gpus_per_node: 2}")]
    result = submit(home, *too_small, "--cluster", "auto")
    assert result.exit_code == 0, result.output
    assert "pool any: 2 nodes with 4 H100-80GB GPUs, 32 CPUs and 200 GiB" in result.stderr
    assert paper.submitted[0][1][-1] == "--cluster=auto"


def test_nobody_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(address: str) -> Any:
        raise ClusterUnreachable(f"no Ray cluster answers at {address}")

    monkeypatch.setattr(cluster.runtime.jobs, "RayJobs", refuse)
    result = submit(home, "--address", "http://nowhere:8265")
    assert result.exit_code == 2
    assert "error: no access to the cluster\n  no Ray cluster answers at http://nowhere:8265" in result.stderr


# Ctrl-C


def interrupted(log: Sequence[str | BaseException], states: Sequence[JobState]) -> PaperCluster:
    return PaperCluster(["step 1\n", KeyboardInterrupt(), *log], states)


RUNNING, STOPPED = JobState("RUNNING"), JobState("STOPPED")


@pytest.mark.parametrize("ask", [lambda question: False, None], ids=["no", "nobody"])
def test_ctrl_c_leaves_the_job_running(ask: Any, capsys: pytest.CaptureFixture[str]) -> None:
    paper = interrupted([], [RUNNING])
    assert follow(paper, "mine-1", ask) == 130  # type: ignore[arg-type]
    assert paper.stopped == []
    told = capsys.readouterr().err
    assert "ray job logs --follow --address http://head:8265 mine-1" in told
    assert "ray job stop --address http://head:8265 mine-1" in told


def test_ctrl_c_and_yes_stops_the_job_and_shows_its_last_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_follower, "RETRY_S", 0.0)
    asked: list[str] = []
    paper = interrupted(["step 1\n", "ended by SIGTERM\n"], [RUNNING, RUNNING, STOPPED])
    assert follow(paper, "mine-1", lambda question: not asked.append(question)) == 130  # type: ignore[arg-type]
    assert (asked, paper.stopped) == (["stop the job mine-1?"], ["mine-1"])
    shown = capsys.readouterr()
    assert shown.out == "step 1\nended by SIGTERM\n"
    assert "job mine-1 was stopped" in shown.err


def test_ctrl_c_while_it_stops_does_not_wait(capsys: pytest.CaptureFixture[str]) -> None:
    paper = interrupted([KeyboardInterrupt()], [RUNNING])
    assert follow(paper, "mine-1", lambda question: True) == 130  # type: ignore[arg-type]
    assert paper.stopped == ["mine-1"]
    assert "ray job status" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "stops"), [("y\n", True), ("\n", False), ("n\n", False), ("", False)])
def test_the_answer(typed: str, stops: bool) -> None:
    app = typer.Typer()

    @app.command()
    def main() -> None:
        raise typer.Exit(int(orchestrator.commands.submit._ask("stop the job?")))

    result = CliRunner().invoke(app, [], input=typed)
    assert result.exit_code == int(stops)
    assert "stop the job? [y/N]" in result.stderr


# In the job


def test_a_run_dir_in_what_ray_unpacked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "ray/session_1/runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(ConfigError, match=r"run_dir=runs/mine lies in the job's own copy .*an absolute path"):
        check_lasting(Path("runs/mine"), "run_dir")
    check_lasting(tmp_path / "runs", "run_dir")
