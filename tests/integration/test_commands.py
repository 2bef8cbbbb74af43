"""The README's commands, word for word, on the tiny model: a user's afternoon in an empty directory."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.readmes import commands

pytestmark = pytest.mark.timeout(900)  # a fixture of two commands took 229 s on a busy machine
ROOT = Path(__file__).resolve().parents[2]
TRAIN = ".venv/bin/tetrarch train configs/tiny.yaml"
ONE_RANK = [f"placement.{group}.ranks=1" for group in ("actor", "critic", "reward", "reference", "rollout")]
"""Starting a process takes the processor longer than anything that it does here."""


def start(words: list[str], home: Path) -> str:
    """Run a command in `home` and return what it showed; a failure is an error."""
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(words, cwd=home, env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the README's relative paths lead to this checkout, except for `runs/`."""
    home = tmp_path_factory.mktemp("home")
    (home / ".venv").symlink_to(sys.prefix)
    for name in ("orchestrator", "roles", "cluster", "configs", "tests"):
        (home / name).symlink_to(ROOT / name)
    return home


@pytest.fixture(scope="module")
def tiny(home: Path) -> Path:
    """The first commands for `configs/tiny.yaml`."""
    first, second = (
        words for words in commands() if " ".join(words) in (".venv/bin/python configs/tiny/inputs.py", TRAIN)
    )
    start([*first, "runs/inputs/tiny"], home)
    start(second, home)
    return home / "runs/tiny"


@pytest.fixture(scope="module")
def reward(home: Path, tiny: Path) -> Path:
    """`tetrarch reward`."""
    shown = start([".venv/bin/tetrarch", "reward", "configs/tiny.yaml"], home)
    assert "held-out pair accuracy" in shown
    return home / "runs/tiny-reward/model"


def test_a_run_leaves_what_the_readme_promises(tiny: Path) -> None:
    assert len(metrics(tiny)) == 6
    for name in ("report.html", "evaluation.jsonl", "samples.jsonl", "config.yaml", "run.json", "actor/config.json"):
        assert (tiny / name).is_file(), name
    told = "prompts.train: 160 prompts of 5 to 9 tokens (prompts.train.path=runs/inputs/tiny/train.jsonl)"
    assert told in (tiny / "report.html").read_text()
    assert list(tiny.glob("tensorboard/events.*"))
    assert [path.name for path in sorted(tiny.glob("checkpoints/*"))] == ["step-000004", "step-000006"]


def test_where_the_time_went(home: Path, tiny: Path) -> None:
    shown = start([".venv/bin/tetrarch", "trace", "runs/tiny"], home)
    assert "(6 steps, median" in shown and "waits for" in shown
    assert "actor update" in shown or "critic update" in shown  # side by side; the longer one is on the critical path
    assert (tiny / "trace.json.gz").is_file()


def test_the_viewer_shows_what_the_policy_wrote(home: Path, tiny: Path) -> None:
    words = [".venv/bin/tetrarch", "view", "--port", "0"]
    with subprocess.Popen(words, cwd=home, stdout=subprocess.PIPE, text=True) as viewer:
        try:
            assert viewer.stdout is not None
            url = viewer.stdout.readline().split()[1]
            asked = {"run": "runs/tiny", "at": "4", "sort": "score", "limit": 3}
            told = httpx.get(f"{url}/api/samples", params=asked, trust_env=False, timeout=60).json()
            scores = [row["score"] for row in told["rows"]]
            assert told["total"] == 32 and scores == sorted(scores)
            sample = {"run": "runs/tiny", "at": "4", "row": told["rows"][0]["row"]}
            whole = httpx.get(f"{url}/api/sample", params=sample, trust_env=False, timeout=60).json()
            assert whole["response"][:400] == told["rows"][0]["response"]
            viewer.send_signal(signal.SIGINT)
            assert viewer.wait(60) == 130
        finally:
            viewer.kill()


def test_the_plan_foresaw_the_memory_and_can_be_fitted_to_the_seconds(home: Path, tiny: Path) -> None:
    plan = [".venv/bin/tetrarch", "plan", "configs/tiny.yaml"]
    shown = start([*plan, "--calibrate", "runs/tiny", "--json", "plan.json"], home)
    assert "It fits." in shown
    planned, steps = json.loads((home / "plan.json").read_text()), metrics(tiny)
    held = sum(sum(host["held"].values()) for host in planned["hosts"])
    assert steps[-1]["memory/host_peak_gib"] == pytest.approx(held, rel=0.2)
    for phase in ("generate", "update", "push"):
        measured = statistics.median(step[f"time/{phase}_s"] for step in steps[1:])
        assert planned["seconds"][phase] == pytest.approx(measured, rel=0.01)
    start([*plan, "ppo.epochs=4", "--efficiency", "runs/tiny/efficiency.yaml"], home)


def test_evaluate_opens_the_policy_of_a_checkpoint_in_vllm(home: Path, tiny: Path) -> None:
    words = [".venv/bin/tetrarch", "evaluate", "configs/tiny.yaml", "evaluation.prompts=8", *ONE_RANK, "--step", "4"]
    shown = start(words, home)
    result = json.loads((tiny / "evaluate.json").read_text())
    assert (result["label"], result["step"], result["prompts"]) == ("step 4", 4, 8)
    assert "evaluation step 4" in shown and "prompts.heldout: 32 prompts" in shown
    assert list(tiny.glob("evaluated-*")) == []


def test_a_reward_model_learns_the_order(reward: Path) -> None:
    quality = json.loads((reward / "reward_quality.json").read_text())
    assert quality["accuracy"] > 0.9
    assert quality["comparisons"] == 40 == sum(one["pairs"] for one in quality["reliability"])
    assert 0 <= quality["calibration_error"] < 0.5
    assert json.loads((reward / "config.json").read_text())["score_shift"] != 0


def test_a_reward_training_that_goes_on_from_a_checkpoint_gives_the_same_weights(home: Path, reward: Path) -> None:
    """Six of eight steps, then two after a resume."""
    whole, run = reward.rename(reward.with_name("whole")), reward.with_name("model-run")
    shown = start([".venv/bin/tetrarch", "reward", "configs/tiny.yaml", "--resume-from", "6"], home)
    assert "what came after step 6 is in" in shown
    assert (reward / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    before, after = metrics(run / "set-aside/1"), metrics(run)
    assert [line["step"] for line in after] == list(range(1, 9)) and after[:6] == before[:6]
    for expected, got in zip(before, after, strict=True):
        differing = {key for key in expected if expected[key] != got[key]}
        assert not {key for key in differing if not key.startswith(("time/", "memory/"))}
    assert after[-1]["preference/heldout_accuracy_low"] > 0.9
    shown = (run / "report.html").read_text()
    assert "Tetrarch · reward model" in shown and "calibration error" in shown


RETRAINING = [".venv/bin/tetrarch", "train", "configs/retraining.yaml", "report.html=false"]


@pytest.fixture(scope="module")
def retraining(home: Path, tiny: Path) -> Path:
    """The README's file: six steps, with retrainings before the third and the fifth."""
    shown = start(RETRAINING, home)
    assert "before step 3 the reward model was retrained on" in shown and "before step 5" in shown
    return home / "runs/retraining"


def test_a_reward_model_is_retrained_during_ppo(home: Path, retraining: Path) -> None:
    whole, untrained = metrics(retraining), home / "runs/inputs/tiny/reward/model.safetensors"
    assert (retraining / "reward_retrained/model.safetensors").read_bytes() != untrained.read_bytes()
    retrained = [step for step in whole if "retraining/loss" in step]
    assert [step["step"] for step in retrained] == [3, 5]
    assert retrained[1]["retraining/accuracy"] > retrained[0]["retraining/accuracy"] + 0.1, "it has learned the judge"
    assert retrained[1]["retraining/pinned_mean_before"] == pytest.approx(retrained[0]["retraining/pinned_mean"])
    assert [step["step"] for step in whole if "policy/loss" not in step] == [3, 5], "the critic is trained alone"


@pytest.mark.slow
def test_a_run_that_retrains_its_reward_model_goes_on_exactly(home: Path, retraining: Path) -> None:
    """The last two steps again, from a checkpoint with the optimizer of the reward model."""
    model = retraining / "reward_retrained/model.safetensors"
    whole, reward = metrics(retraining), model.read_bytes()
    start([*RETRAINING, "--resume-from", "4"], home)
    for expected, got in zip(whole, metrics(retraining), strict=True):
        differing = {key for key in {**expected, **got} if expected.get(key) != got.get(key)}
        assert not {key for key in differing if not key.startswith(("time/", "memory/", "tokens/"))}
    assert model.read_bytes() == reward


SFT = [".venv/bin/tetrarch", "sft", "configs/sft.yaml", "sft.output=runs/answers/model", "sft.epochs=60"]
SFT += ["sft.data.path=runs/answers.jsonl", "sft.data.columns={}", "sft.data.chat=false"]
SFT += ["sft.heldout={path: runs/answers.jsonl}"]
SFT += ["sft.samples_per_step=8", "sft.evaluate_every=30", "checkpoint.every=30", "placement.actor.ranks=1"]


@pytest.fixture(scope="module")
def fine_tuned(home: Path, tiny: Path) -> Path:
    """A model of `tetrarch sft`: three of four answers to each question are one letter, the fourth is another."""
    rows = [{"prompt": prompt, "completion": f" {letter}"} for prompt in ("what is", "draw") for letter in "aaab"]
    (home / "runs/answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = start(SFT, home)
    assert "8 demonstrations to train on, 8 held out" in shown and "held out, after training: 0.18" in shown
    return home / "runs/answers/model"


def test_fine_tuning_reaches_the_entropy_of_its_data(fine_tuned: Path) -> None:
    """A response is a space, the letter and its end: a third of H(1/4) nats per token."""
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 3
    assert json.loads((fine_tuned / "sft_quality.json").read_text())["loss"] == pytest.approx(entropy, abs=0.005)
    run = fine_tuned.with_name("model-run")
    assert [line["step"] for line in metrics(run)] == list(range(1, 61))
    assert "sft.data: 8 rows, 8 used" in (run / "report.html").read_text()


@pytest.mark.slow
def test_fine_tuning_goes_on_exactly(home: Path, fine_tuned: Path) -> None:
    """The second half again after a resume."""
    whole = fine_tuned.rename(fine_tuned.with_name("whole"))
    start([*SFT, "--resume-from", "30"], home)
    assert (fine_tuned / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert [line["step"] for line in metrics(fine_tuned.with_name("model-run"))] == list(range(1, 61))


DPO = [".venv/bin/tetrarch", "dpo", "configs/dpo.yaml", "placement.actor.ranks=1"]
DPO += ["report={html: false, tensorboard: false}"]


@pytest.fixture(scope="module")
def preferred(home: Path, tiny: Path) -> Path:
    """A model of `tetrarch dpo`: the README's file."""
    shown = start(DPO, home)
    assert "128 pairs to train on, 32 held out" in shown and "320 responses, 0 of them known" in shown
    assert "held out, before training: loss 0.6931, accuracy 50.0%" in shown
    return home / "runs/dpo/model"


def test_preferences_are_learned(preferred: Path) -> None:
    quality = json.loads((preferred / "dpo_quality.json").read_text())
    assert quality["accuracy"] == 1 and quality["margin"] > 0.5 and quality["loss"] < 0.5
    steps = metrics(preferred.with_name("model-run"))
    assert steps[-1]["dpo/heldout_margin"] == quality["margin"] and "dpo/kl" in steps[0]


@pytest.mark.slow
def test_preferences_go_on_exactly(home: Path, preferred: Path) -> None:
    """The second half again after a resume, which asks the reference nothing."""
    run = preferred.with_name("model-run")
    whole, before = preferred.rename(preferred.with_name("whole")), metrics(run)
    shown = start([*DPO, "--resume-from", "8"], home)
    assert "320 responses, 320 of them known" in shown and "what came after step 8 is in" in shown
    assert (preferred / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for expected, got in zip(before, metrics(run), strict=True):
        differing = {key for key in expected if expected[key] != got[key]}
        assert not {key for key in differing if not key.startswith(("time/", "memory/"))}


def test_the_less_common_settings_run(home: Path, reward: Path) -> None:
    """Chats, skipped prompts, an ensemble of a reward model behind the text bridge and a function, critic warm-up,
    normalised values, bootstrap, adaptive KL, a mean of the weights."""
    chats = home / "runs/chats.jsonl"
    turns = [[{"role": "user", "content": f"draw the {'very ' * row}red river"}] for row in range(12)]
    chats.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    model = {"type": "model", "model": {"path": str(reward)}, "text_bridge": True}
    members = {"model": model, "letters": {"type": "function", "path": "configs/tiny/reward.py"}}
    ensemble = {"type": "ensemble", "members": members, "combine": {"type": "mean_minus_std"}}
    shown = start(
        [
            *(
                *TRAIN.split(),
                "run_dir=runs/tiny-settings",
                "steps=3",
                "prompts.too_long=skip",
                "prompts.max_tokens=24",
            ),
            *(f"prompts.train.path={chats}", f"reward={json.dumps(ensemble)}", "critic.model=null"),
            "critic.initialise_from=policy",
            *("critic.warmup.max_steps=1", "ppo.value.normalise=true", "ppo.truncated={type: bootstrap}"),
            "actor.ema_decay=0.5",
            *(
                "ppo.kl.controller={type: adaptive, target: 0.5, initial: 0.2, horizon: 64}",
                "rollout.prompts_per_step=4",
                *ONE_RANK,
            ),
        ],
        home,
    )
    assert "longer than prompts.max_tokens=24 were left out" in shown
    warm, *trained = metrics(home / "runs/tiny-settings")
    assert "policy/loss" not in warm and warm["weights/version"] == 0
    assert [line["weights/version"] for line in trained] == [1, 2]
    assert trained[0]["policy/ratio_first_minibatch"] == pytest.approx(1.0, abs=1e-5)
    # While the actor stands still its KL says nothing; then it is below its target, so the coefficient falls.
    assert warm["kl/coefficient"] == trained[0]["kl/coefficient"] == 0.2 > trained[1]["kl/coefficient"]
    for line in [warm, *trained]:
        assert line["engine/logprob_gap_mean"] < 1e-4 and line["score/disagreement"] > 0
    critic = json.loads((home / "runs/tiny-settings/critic/config.json").read_text())
    assert critic["score_scale"] != 1.0
    assert (home / "runs/tiny-settings/actor_ema/model.safetensors").is_file()


def test_sigterm_to_the_whole_process_group_saves_the_last_step(home: Path, tiny: Path) -> None:
    """As `timeout` sends it: the driver alone hears it, ends and saves its step, ends the ranks, writes the report."""
    words = [
        *(*TRAIN.split(), "run_dir=runs/tiny-ended", "steps=1000", "prompts.heldout=null", "evaluation.every=0"),
        *("checkpoint.every=0", "reward={type: function, path: configs/tiny/reward.py}", *ONE_RANK),
        *("critic={}", "ppo.advantage={type: rloo}"),  # a role less to start
    ]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=home, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        shown = ""
        while "/1000" not in shown:
            line = process.stdout.readline()
            assert line, shown
            shown += line
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        shown += process.communicate(timeout=200)[0]
    assert process.returncode == 143, shown
    assert time.monotonic() - began < 90
    run = home / "runs/tiny-ended"
    step = metrics(run)[-1]["step"]
    assert f"step-{step:06d} stands; go on from there with --resume" in shown and "ended by SIGTERM" in shown
    assert json.loads((run / "run.json").read_text())["status"] == "stopped" and (run / "report.html").is_file()
    assert [folder.name for folder in run.glob("checkpoints/*")] == [f"step-{step:06d}"]


@pytest.mark.slow
def test_a_pipeline_is_stopped_goes_on_and_is_skipped_once_it_is_done(home: Path, tiny: Path) -> None:
    """SFT is stopped after some steps; the same command resumes it and measures the model; then all is done."""
    sft = {"sft.output": "runs/pipeline/sft/model", "sft.epochs": 10, "placement.actor.ranks": 1}
    measured = {
        "run_dir": "runs/pipeline/measured",
        "actor.model.path": "${sft.output}",
        "reward": {"type": "function", "path": "configs/tiny/reward.py"},
        "evaluation.prompts": 4,
        **{key: int(value) for key, value in (word.split("=") for word in ONE_RANK)},
    }
    stages = {
        "sft": {"command": "sft", "config": "configs/sft.yaml", "overrides": sft},
        "measured": {"command": "evaluate", "config": "configs/tiny.yaml", "overrides": measured},
    }
    section = {"output": "runs/pipeline", "stages": stages, "compare": {"SFT": "measured"}}
    (home / "runs/pipeline.yaml").write_text(json.dumps({"pipeline": section}))
    words = [".venv/bin/tetrarch", "pipeline", "runs/pipeline.yaml"]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, cwd=home, **pipes) as process:
        assert process.stdout is not None
        shown = ""
        while "step  1/80" not in shown:
            line = process.stdout.readline()
            assert line, shown
            shown += line
        process.terminate()
        shown += process.communicate(timeout=200)[0]
    assert process.returncode == 143 and "the stage sft was under way; the same command goes on with it" in shown, shown
    run = home / "runs/pipeline/sft/model-run"
    stopped = metrics(run)[-1]["step"]
    shown = start(words, home)
    assert "stage 1/2 sft: tetrarch sft configs/sft.yaml (it was interrupted)" in shown
    assert f"resuming from {run.relative_to(home)}/checkpoints/step-{stopped:06d}" in shown
    assert [line["step"] for line in metrics(run)] == list(range(1, 81))
    found = json.loads((home / "runs/pipeline/report.json").read_text())
    assert found["compared"]["SFT"]["prompts"] == 4 and found["stages"]["sft"]["seconds"] > 0
    assert "measured" in (home / "runs/pipeline/report.html").read_text()
    shown = start(words, home)
    assert shown.count("skipped; ") == 2 and "report: runs/pipeline/report.html" in shown


@pytest.mark.slow
def test_what_init_writes_trains(home: Path, tiny: Path) -> None:
    inputs = {"model": "policy", "prompts": "train.jsonl"}
    words = [word for name, file in inputs.items() for word in (f"--{name}", f"runs/inputs/tiny/{file}")]
    words += ["--reward", "configs/tiny/reward.py", "--gpus", "0"]
    start([".venv/bin/tetrarch", "init", "runs/mine.yaml", *words], home)
    small = ["steps=2", "rollout={prompts_per_step: 8, max_response_tokens: 8}", "prompts.max_tokens=32"]
    start([".venv/bin/tetrarch", "train", "runs/mine.yaml", *small], home)
    assert len(metrics(home / "runs/mine")) == 2


@pytest.mark.slow
def test_a_reward_that_fails_loses_no_step(home: Path, tiny: Path) -> None:
    """No checkpoint was due yet: the run saves one before it ends, and goes on from there."""
    function = home / "runs/third_time_fails.py"
    function.write_text(
        "import pathlib\n"
        "calls = []\n"
        "def score(prompts, responses, *, response_token_ids, finished, columns):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 5 and not pathlib.Path('runs/repaired').exists():\n"
        "        raise RuntimeError('the judge is out')\n"
        "    return [float(len(text)) for text in responses]\n"
    )
    words = [
        *(*TRAIN.split(), "run_dir=runs/tiny-failing", "steps=3", "checkpoint.every=0", "evaluation.every=0"),
        *(f"reward={{type: function, path: {function}, retries: 0}}", "prompts.heldout=null", *ONE_RANK),
    ]
    done = subprocess.run(words, cwd=home, text=True, capture_output=True, timeout=300)
    shown = done.stdout + done.stderr
    assert done.returncode == 1, shown
    assert "the judge is out" in shown and "step-000002; go on from there with --resume" in shown
    (home / "runs/repaired").touch()
    start([*words, "--resume"], home)
    assert [line["step"] for line in metrics(home / "runs/tiny-failing")] == [1, 2, 3]


@pytest.mark.slow
def test_an_earlier_checkpoint_is_gone_on_from_with_another_learning_rate(home: Path, tiny: Path) -> None:
    """The README's command, on a copy of the run."""
    again = home / "runs/tiny-again"
    shutil.copytree(tiny, again)
    (words,) = (words for words in commands() if "--resume-from" in words)
    shown = start([*words, "run_dir=runs/tiny-again"], home)
    assert "actor.optimizer.learning_rate: 0.003 in the checkpoint, now 0.001" in shown
    assert f"what came after step 4 is in {Path('runs/tiny-again/set-aside/1')}" in shown
    assert metrics(again)[:4] == metrics(tiny)[:4]
    assert [line["step"] for line in metrics(again)] == [1, 2, 3, 4, 5, 6]
    assert [line["lr/actor"] for line in metrics(again)] == [3e-3] * 4 + [1e-3] * 2
    aside = again / "set-aside/1"
    assert metrics(aside) == metrics(tiny) and (aside / "actor/config.json").is_file()
    assert [folder.name for folder in aside.glob("checkpoints/*")] == ["step-000006"]


@pytest.mark.slow
def test_adapters_with_the_actor_as_its_own_reference_resume_exactly(home: Path) -> None:
    """The README's command; two steps, then two more after a resume, are four."""
    start([".venv/bin/python", "configs/tiny/inputs.py", "runs/inputs/tiny"], home)
    words = next(words for words in commands() if "reference.share_actor=true" in words)
    lora = [word for word in words if not word.startswith("run_dir=")] + ONE_RANK
    start([*lora, "run_dir=runs/whole", "steps=4"], home)
    start([*lora, "run_dir=runs/halves", "steps=2"], home)
    start([*lora, "run_dir=runs/halves", "steps=4", "--resume"], home)
    whole, halves = (metrics(home / "runs" / name) for name in ("whole", "halves"))
    for expected, got in zip(whole, halves, strict=True):
        differing = {key for key in expected if expected[key] != got[key]}
        assert not {key for key in differing if not key.startswith(("time/", "tokens/", "memory/"))}
    assert whole[-1]["objective/kl"] != 0 and max(line["engine/logprob_gap_max"] for line in whole) < 1e-4
    assert {log.name for log in (home / "runs/whole/logs").iterdir()} == {
        f"{role}-0.log" for role in ("actor", "critic", "reward", "rollout")
    }
