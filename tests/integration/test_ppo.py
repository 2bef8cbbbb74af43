"""`configs/tiny.yaml` end to end: the command, real Ray, real vLLM, real DeepSpeed, two ranks in every group."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM, AutoTokenizer

from cluster.ranks.host_memory import tree
from configs.tiny.inputs import write
from orchestrator.metrics import METRICS
from orchestrator.report.run_files import kept_samples, samples_of
from orchestrator.run.run_difference import run_difference
from orchestrator.stages.chosen_checkpoint import chosen_checkpoint
from orchestrator.stages.model_export import StoredModel
from orchestrator.timeline.critical_path import critical_path, seconds_without
from orchestrator.timeline.recorded_steps import recorded_steps
from orchestrator.timeline.trace_file import TRACE_FILE, read_trace
from tests.reference import tiny_metrics

pytestmark = pytest.mark.timeout(900)  # the first test waits for `proof`, which took 285 s on a busy machine
ROOT = Path(__file__).resolve().parents[2]
STEPS = 12
KILLS = ("critic-1@4+0.50", "driver@7+0.30", "reference-1@9", "rollout-0@10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of `configs/tiny.yaml`."""
    folder = tmp_path_factory.mktemp("tiny")
    write(folder)
    return folder


def tetrarch(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *map(str, words)]


def settings(folder: Path) -> list[str]:
    """Overrides of `configs/tiny.yaml` for everything in `folder` and a function as the reward."""
    reward = {"type": "function", "path": str(ROOT / "configs/tiny/reward.py"), "workers": 2}
    return [
        *(f"prompts.train.path={folder}/train.jsonl", f"prompts.heldout.path={folder}/heldout.jsonl"),
        *(f"actor.model.path={folder}/policy", f"critic.model.path={folder}/reward", f"reward={json.dumps(reward)}"),
        f"model_cache={folder}/models",
        "report.samples.token_columns=[token_ids, rollout_logprobs, old_logprobs, reference_logprobs, values, returns, "
        "advantages]",
    ]


def start(arguments: list[str], temporary: Path | None = None) -> subprocess.Popen[str]:
    """The command, its output collected. `temporary`: its folder for temporary files."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"} | (
        {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}
        if temporary
        else {}  # the names of Ray's sockets must be short
    )
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def listening() -> dict[str, bool]:
    """Address and program of the sockets on which `proof` has listened → whether another machine could reach them."""
    return {}


@pytest.fixture(scope="module")
def proof(folder: Path, listening: dict[str, bool]) -> str:
    """What `tetrarch verify-resume` says: a whole run, and one with kills of ranks, the driver and an engine."""
    kills = [word for kill in KILLS for word in ("--kill", kill)]
    words = [*settings(folder), f"run_dir={folder}/tiny", "--steps", STEPS, *kills]
    (folder / "tmp").mkdir()
    process = start(tetrarch("verify-resume", "configs/tiny.yaml", *map(str, words)), folder / "tmp")
    until = time.monotonic() + 800
    while process.poll() is None and time.monotonic() < until:
        listening.update(listening_sockets(process.pid))
        time.sleep(0.5)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def listening_sockets(pid: int) -> Iterator[tuple[str, bool]]:
    """Those of the process and its descendants: address and program, whether another machine could reach it."""
    ours = {process.pid for process in tree(pid)}
    for socket in psutil.net_connections("inet"):
        if socket.status == psutil.CONN_LISTEN and socket.pid in ours:
            beyond = not ip_address(socket.laddr.ip.removeprefix("::ffff:")).is_loopback
            with suppress(psutil.Error):
                program = " ".join(psutil.Process(socket.pid).cmdline())[-80:]
                yield f"{socket.laddr.ip}:{socket.laddr.port} {program}", beyond


def test_nothing_is_left_in_the_folder_for_temporary_files(folder: Path, proof: str) -> None:
    """But the cache of torch's compiler. By itself vLLM leaves a file of each engine that is killed."""
    assert [entry.name for entry in (folder / "tmp").iterdir() if not entry.name.startswith("torchinductor_")] == []


def test_nothing_listens_beyond_this_machine(listening: dict[str, bool], proof: str) -> None:
    assert len(listening) > 40, "those of Ray, of ten ranks and of where they meet"
    assert [socket for socket, beyond in listening.items() if beyond] == []


@pytest.fixture(scope="module")
def run_dir(folder: Path, proof: str) -> Path:
    """A whole run."""
    return folder / "tiny-verify/whole"


def test_every_metric_is_there_and_described(run_dir: Path) -> None:
    lines = metrics(run_dir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert set(line) <= set(METRICS)
        assert not [key for key, value in line.items() if value is None]


def test_the_score_rises(run_dir: Path) -> None:
    scores = [line["score/mean"] for line in metrics(run_dir)]
    error = metrics(run_dir)[0]["score/std"] / 32**0.5
    assert statistics.mean(scores[-4:]) > statistics.mean(scores[:2]) + 3 * error, scores


def test_the_numbers_are_those_of_before(run_dir: Path) -> None:
    """Bit for bit on the machine where they were taken; elsewhere rounding differs, and later steps amplify it."""
    kept, steps = json.loads(tiny_metrics.FILE.read_text()), tiny_metrics.learned(run_dir)
    if tiny_metrics.machine() == kept["machine"]:
        assert steps == kept["steps"][:STEPS]
    assert steps[0] == pytest.approx(kept["steps"][0], rel=1e-3, abs=1e-4)


def test_the_first_ratio_is_one_and_the_first_kl_is_nothing(run_dir: Path) -> None:
    lines = metrics(run_dir)
    for line in lines:
        assert line["policy/ratio_first_minibatch"] == pytest.approx(1.0, abs=1e-5)
    assert lines[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert lines[-1]["objective/kl"] > 1e-3


def test_the_engines_have_the_trainers_weights_after_every_push(run_dir: Path) -> None:
    lines = metrics(run_dir)
    assert [line["weights/version"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line["engine/logprob_gap_mean"] < 1e-4
        assert line["engine/logprob_gap_max"] < 1e-3


def test_the_reference_does_not_move(run_dir: Path) -> None:
    manifests = [json.loads(path.read_text()) for path in run_dir.glob("checkpoints/*/manifest.json")]
    assert len(manifests) == STEPS
    assert len({manifest["state"]["reference"] for manifest in manifests}) == 1


def test_the_actor_is_an_ordinary_folder_and_has_changed(run_dir: Path, folder: Path) -> None:
    trained = AutoModelForCausalLM.from_pretrained(run_dir / "actor", dtype=torch.float32)
    untrained = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    assert AutoTokenizer.from_pretrained(run_dir / "actor").pad_token == "<pad>"
    moved = {
        name: float((now - before).abs().max())
        for (name, now), before in zip(trained.state_dict().items(), untrained.state_dict().values(), strict=True)
    }
    assert min(moved.values()) > 0


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_an_export_of_the_last_checkpoint_is_what_the_run_has_left(run_dir: Path, tmp_path: Path, role: str) -> None:
    """Byte for byte, from the state that two ranks have written in shards; with a model card."""
    stored = StoredModel.open(chosen_checkpoint(run_dir), role)
    stored.write(tmp_path / role)
    written, left = ({file.name: file.read_bytes() for file in (run / role).iterdir()} for run in (tmp_path, run_dir))
    written.pop("tetrarch.json"), left.pop("tetrarch.json", None)
    card, curves = left.pop("README.md").decode(), left.pop("curves.svg")
    assert f"{role}, step {STEPS}" in card and curves, "what is left has its card too"
    assert written == left and "model.safetensors" in left
    stored.describe(tmp_path / role, run_dir)
    card = (tmp_path / role / "README.md").read_text()
    assert f"{role}, step {STEPS}" in card and "| after |" in card and (tmp_path / role / "curves.svg").is_file()


def check_timeline(run_dir: Path) -> None:
    """What every rank did and waited for adds up to the step, and the step is that of the metrics."""
    told = {line["step"]: line["time/step_s"] for line in metrics(run_dir)}
    steps = recorded_steps(run_dir)
    assert {course.step: course.seconds for course in steps} == pytest.approx(told, abs=0.001)
    done = {"rollout stream", "actor logprobs", "critic values", "actor update", "critic update", "actor push"}
    for part in read_trace(run_dir / TRACE_FILE):
        head, sums = part[0]["args"], defaultdict[tuple[int, int], float](float)
        began, ended = head["began"], head["ended"]
        for event in part:
            first = event.get("ts", 0) / 1e6
            if event["ph"] == "X" and event["cat"] in ("call", "idle"):
                last = first + event["dur"] / 1e6
                sums[event["pid"], event["tid"]] += max(min(last, ended) - max(first, began), 0.0)
        assert all(total == pytest.approx(ended - began, rel=0.02) for total in sums.values())
    for course in steps:
        assert done <= {call.what for call in course.inside}
        path = critical_path(course)
        assert sum(link.ended - link.began for link in path) == pytest.approx(course.seconds, rel=0.02)
        assert seconds_without(course, None) == pytest.approx(course.seconds, rel=0.02)
    names = {event["name"] for part in read_trace(run_dir / TRACE_FILE) for event in part}
    assert {"forward", "backward", "optimizer step", "gather", "load bucket", "starting the roles"} <= names


def test_what_is_left_behind(run_dir: Path) -> None:
    assert (run_dir / "report.html").read_text().startswith("<!doctype html>")
    assert list(run_dir.glob("tensorboard/events.*"))
    check_timeline(run_dir)
    assert {json.loads(line)["label"] for line in (run_dir / "evaluation.jsonl").read_text().splitlines()} == {
        "before",
        "after",
    }
    assert "run_dir" in (run_dir / "config.yaml").read_text()
    assert (run_dir / "samples.jsonl").exists()
    kept = {step: parquet.read_table(file).to_pydict() for step, file in kept_samples(run_dir).items()}
    assert list(kept) == list(range(1, STEPS + 1))
    for line in metrics(run_dir):
        rows = kept[line["step"]]
        assert statistics.fmean(rows["score"]) == pytest.approx(line["score/mean"], abs=1e-5)
        assert statistics.fmean(rows["kl"]) == pytest.approx(line["objective/kl"], abs=1e-4)
        assert set(rows["version"]) == {line["step"] - 1} and all(rows["trained"]) and len(set(rows["seed"])) == 32


def test_a_dead_rank_ends_the_run_by_name(folder: Path, proof: str) -> None:
    seconds = re.search(r"critic-1@4\+0\.50: ended with exit code 1 after ([\d.]+) s", proof)
    assert seconds and float(seconds[1]) < 150, proof
    output = (folder / "tiny-verify/broken.log").read_text()
    assert "critic rank 1" in output
    assert "Traceback" not in output


def test_kills_and_resumes_give_the_same_run(folder: Path, run_dir: Path, proof: str) -> None:
    assert proof.count("resumed from step") + proof.count("the run went on") == len(KILLS), proof
    assert "driver@7+0.30: ended with signal 9" in proof
    assert proof.splitlines()[-1] == "the runs are the same, bit for bit"
    difference = run_difference(run_dir, folder / "tiny-verify/broken")
    told = {one.kind: one.same for one in difference.compared}
    assert told["metrics"] == told["ledger"] == told["all samples"] == f"the same: {STEPS} steps"
    assert (told["checkpoints"], told["models"]) == (f"the same: {STEPS} checkpoints", "the same: 2 models")
    ledger = f"ledger.jsonl: {STEPS * 32} samples: {STEPS * 32} trained on, 0 dropped; "
    ledger += f"samples/ has those of {STEPS} of {STEPS} steps"
    assert ledger in (folder / "tiny-verify/broken.log").read_text()


def test_rows_that_keepers_keep_teach_the_same_and_a_lost_keeper_costs_no_step(folder: Path, run_dir: Path) -> None:
    """Two engines, each with a keeper: what is scored together is what it is in the whole run."""
    run = folder / "kept"
    words = [*settings(folder)[:-1], f"run_dir={run}", f"steps={STEPS}", "report.samples=null", "row_keepers=2"]
    process = start(tetrarch("train", "configs/tiny.yaml", *words, "placement.rollout.ranks=2", "checkpoint.every=12"))
    rank_after(run, process, "keeper-1", 3).kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0 and "Traceback" not in output
    assert re.search(r"keeper rank 1 \(node \S+\) died in ", output), output
    done = len(metrics(run))
    assert 3 <= done < STEPS and f"step-{done:06d}; go on from there with --resume" in output, output
    for line, own in zip(tiny_metrics.learned(run), tiny_metrics.learned(run_dir), strict=False):
        assert line == pytest.approx(own, rel=1e-4, abs=1e-5)  # sums of two parts are rounded otherwise


@pytest.mark.slow
def test_a_step_is_computed_again(run_dir: Path) -> None:
    process = start(tetrarch("replay", run_dir, 9))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    told = dict(line.split(maxsplit=1) for line in output.splitlines() if line.startswith(("metrics", "checkpoints")))
    assert told == {"metrics": "the same: 1 step", "checkpoints": "the same: 1 checkpoint"}


@pytest.mark.slow
@pytest.mark.timeout(800)
def test_the_update_of_one_role_is_computed_again(run_dir: Path, tmp_path: Path) -> None:
    for role in ("actor", "critic"):
        process = start(tetrarch("replay", run_dir, 9, "--role", role))
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        assert f"the same: {role} after step 9" in output and "the runs are the same, bit for bit" in output
    run, file = tmp_path / "run", samples_of(tmp_path / "run", 9)
    shutil.copytree(run_dir, run)
    table = parquet.read_table(file)
    returns = table["returns"].to_pylist()
    returns[0][0] += 0.01
    parquet.write_table(table.set_column(table.column_names.index("returns"), "returns", [returns]), file)
    process = start(tetrarch("replay", run, 9, "--role", "critic"))
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 3 and "the runs part at step 9: value/loss" in output, output


def rank_after(run: Path, process: subprocess.Popen[str], rank: str, steps: int) -> psutil.Process:
    """The process of a rank, when the run has done `steps` steps."""
    deadline = time.monotonic() + 200
    while not (run / "metrics.jsonl").is_file() or len(metrics(run)) < steps:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.01)
    return psutil.Process(int(re.findall(r"pid (\d+)", (run / f"logs/{rank}.log").read_text())[-1]))


@pytest.mark.slow
def test_ranks_are_killed_and_no_bit_changes(folder: Path, run_dir: Path) -> None:
    """An engine in the middle of generation: the other one answers its prompts, with the same seeds, and it comes back
    at a push. Then a rank of the reference, whose group starts again; then one of the critic, with which all do."""
    run = folder / "healed"
    words = [*settings(folder), f"run_dir={run}", f"steps={STEPS}", "checkpoint={every: 4, keep: 3}"]
    process = start(tetrarch("train", "configs/tiny.yaml", *words, "recovery.on_rank_failure=restart"))
    engine = rank_after(run, process, "rollout-0", 2)
    assert engine.nice() == psutil.Process().nice(), "Ray's own choice is 15"
    used = engine.cpu_times().user
    while engine.cpu_times().user < used + 0.03:  # it generates
        time.sleep(0.002)
    engine.kill()
    rank_after(run, process, "reference-1", 5).kill()
    rank_after(run, process, "critic-1", 9).kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert re.search(r"rollout rank 0 \(node \S+\) is started again: it died in stream", output), output
    back = r"rollout rank 0 .* is back after [0-9.]+ s with weights of version \d+: .*prompts that were moved: 16"
    assert re.search(back, output), output
    assert "reference: started again, since reference rank 1" in output and "reference: back after" in output
    assert "critic rank 1" in output and "all roles are started again, and the run goes on from step 8" in output
    lines = metrics(run)
    assert lines[8]["healing/run_restarts"] == 1
    assert [line.get("healing/engine_restarts") for line in lines] == [*(None, None, 1.0), *[None] * (STEPS - 3)]
    assert lines[2]["healing/prompts_moved"] == 16 and "engine restarts 1" in output
    assert sum(line.get("healing/frozen_restarts", 0) for line in lines[5:]) == 1
    assert tiny_metrics.learned(run) == tiny_metrics.learned(run_dir)
    manifests = [path / f"checkpoints/step-{STEPS:06d}/manifest.json" for path in (run_dir, run)]
    first, second = (json.loads(manifest.read_text())["files"] for manifest in manifests)
    assert first == second, "weights and moments"
    assert "Engine restarts" in (run / "report.html").read_text()


KILLER = """

plain, MARK, RUN = score, Path({mark!r}), Path({run!r})


def score(prompts, responses, **more):
    scores, done = plain(prompts, responses, **more), RUN / "metrics.jsonl"
    if done.is_file() and len(done.read_text().splitlines()) == 2:
        with suppress(FileExistsError):
            MARK.touch(exist_ok=False)
            time.sleep(3)  # until the other engine has answered too
            for engine in range(2):
                os.kill(int(re.findall(r"pid (\\d+)", (RUN / f"logs/rollout-{{engine}}.log").read_text())[-1]), 9)
    return scores
"""
"""A reward that kills the engines in step 3, between their answers and the push."""


@pytest.mark.slow
def test_a_push_that_fails_for_good_costs_no_step(folder: Path, run_dir: Path) -> None:
    """One failure of an engine is survived, the second one ends the run with the step in whose push both are found."""
    run, reward = folder / "unpushed", folder / "killer.py"
    plain = (ROOT / "configs/tiny/reward.py").read_text()
    imports = "import os\nimport re\nimport time\nfrom contextlib import suppress\nfrom pathlib import Path\n"
    first, rest = plain.split("from __future__ import annotations\n")
    killer = KILLER.format(mark=str(folder / "killed"), run=str(run))
    reward.write_text(f"{first}from __future__ import annotations\n{imports}{rest}{killer}")
    function = {"type": "function", "path": str(reward), "workers": 2}
    words = [*settings(folder), f"run_dir={run}", f"steps={STEPS}", "checkpoint={every: 12, keep: 3}"]
    words += [f"reward={json.dumps(function)}", "recovery.engine_failures_per_hour=1"]
    process = start(tetrarch("train", "configs/tiny.yaml", *words))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and re.search(r"rollout rank \d \(node \S+\) died", output), output
    assert "the end of step 3 has failed" in output and "step-000003; go on from there with --resume" in output, output
    assert tiny_metrics.learned(run) == tiny_metrics.learned(run_dir)[:3]
    process = start(tetrarch("train", "configs/tiny.yaml", "--resume", "--", *words))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    told = {one.kind: one.same for one in run_difference(run_dir, run).compared}
    assert told["metrics"] == told["ledger"] == told["all samples"] == f"the same: {STEPS} steps", told
    assert told["models"] == "the same: 2 models"
    for step in (3, STEPS):  # but configuration and hash of the reward
        manifests = [path / f"checkpoints/step-{step:06d}/manifest.json" for path in (run_dir, run)]
        first, second = (json.loads(manifest.read_text()) for manifest in manifests)
        assert first["files"] == second["files"], "weights and moments"
        others = first["state"].keys() - {"config", "models"}
        assert {name: first["state"][name] for name in others} == {name: second["state"][name] for name in others}


@pytest.mark.slow
def test_an_engine_that_dies_during_an_update_costs_no_step(folder: Path) -> None:
    run = folder / "orphaned"
    words = [*settings(folder), f"run_dir={run}", "steps=3", "ppo.epochs=60", "recovery.engine_failures_per_hour=0"]
    process = start(tetrarch("train", "configs/tiny.yaml", *words, "checkpoint.every=3"))
    actor, engine = (rank_after(run, process, f"{role}-0", 1) for role in ("actor", "rollout"))
    used = actor.cpu_times().user
    while actor.cpu_times().user < used + 2:  # it has long been scored
        time.sleep(0.1)
    engine.kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 1 and "rollout rank 0" in output, output
    assert "the end of step 2 has failed" in output and "step-000002; go on from there with --resume" in output, output
    assert [line["step"] for line in metrics(run)] == [1, 2]


def test_a_run_directory_is_not_overwritten(folder: Path, run_dir: Path) -> None:
    process = start(tetrarch("train", "configs/tiny.yaml", *settings(folder), f"run_dir={run_dir}"))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "--resume" in output


@pytest.mark.slow
@pytest.mark.timeout(600)  # three starts of all roles
def test_a_learning_rate_that_is_too_high_sends_the_run_back(folder: Path) -> None:
    """It rises from step to step, until the KL is beyond its band; then a smaller one does, also after a resume."""
    run, rate = folder / "back", "{learning_rate: 0.06, schedule: {type: constant, warmup_steps: 36}}"
    words = [*settings(folder), f"run_dir={run}", "steps=10", f"actor.optimizer={rate}", "alerts.factor=0.03"]
    words += ["checkpoint={every: 1, keep: 1}", "alerts.kl.on_alert=rollback"]
    process = start(tetrarch("train", "configs/tiny.yaml", *words))
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    told = re.search(r"alerts\.kl in step (\d+): the run goes back to the checkpoint of step (\d+) \(1 of 2", output)
    assert told, output
    fired, back = int(told[1]), int(told[2])
    assert fired == back + 2, "the weights of the step before have made the batch in which it fired"
    lines, aside = metrics(run), metrics(run / "set-aside/1")
    assert [line["step"] for line in lines] == list(range(1, 11)) and aside[-1]["step"] == fired
    assert lines[:back] == aside[:back] and lines[back]["healing/rollbacks"] == 1
    for role in ("actor", "critic"):
        assert lines[back][f"lr/{role}"] == pytest.approx(0.03 * aside[back][f"lr/{role}"])
    bound = 10 / 50
    assert aside[-1]["objective/kl_per_token"] > bound > max(line["objective/kl_per_token"] for line in lines)
    process = start(tetrarch("train", "configs/tiny.yaml", "--resume", "--", *words, "steps=11"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert metrics(run)[10]["lr/actor"] == pytest.approx(0.03 * 0.06)
