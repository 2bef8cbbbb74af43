"""`tetrarch verify-resume` on a training of a few lines: kills are done, losses are noticed, and it always ends."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from orchestrator.config.loading import load_config
from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.stages.resume_proof import UNWATCHED, Kill, Proof, random_kills

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"

TRAINING = """
import json, os, subprocess, sys, time
from pathlib import Path

from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.run_lock import held

fault, folder, steps = sys.argv[1], Path(sys.argv[-1].removeprefix("run_dir=")), 6
kills = int(sys.argv[2]) if folder.name == "broken" else 0
with Path(sys.argv[0]).with_name("starts").open("a+") as file:
    file.write("broken " * (folder.name == "broken"))
    file.seek(0)
    starts = len(file.read().split())
waits_at = 3 if fault == "saves late" else steps - 1  # for its kill, which a busy machine may do late
with held(folder):
    checkpoints = Checkpoints(folder / "checkpoints", keep=steps)
    newest = checkpoints.newest() if "--resume" in sys.argv else None
    step, weight = (newest.step, newest.state["weight"]) if newest else (0, 1.0)
    if newest and fault == "forgets":
        weight += 1e-9
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:step] if newest else []
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "logs").mkdir(exist_ok=True)
    rank = subprocess.Popen(["sleep", "60"])
    with (folder / "logs/actor-0.log").open("a") as log:
        print(f"--- actor rank 0 (node x), pid {rank.pid}, 2026-01-01 00:00:00", file=log)
    while step < steps:
        time.sleep(0.1)
        while step == waits_at and 0 < starts <= kills and rank.poll() is None:
            time.sleep(0.01)
        if rank.poll() is not None:
            sys.exit("actor rank 0 has died")
        if fault == "ends" and step == 3:
            sys.exit("no more")
        if fault == "never ends":
            time.sleep(600)
        step, weight = step + 1, weight * 1.5
        with (folder / "metrics.jsonl").open("a") as file:
            print(json.dumps({"step": step, "weight": weight, "time/step_s": 0.1 + time.time() % 0.01}), file=file)
        if fault != "saves late" or step > 3:
            checkpoints.save(step, {"step": step, "weight": weight}, lambda place: None)
    rank.kill()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "training.py"
    file.write_text(TRAINING)
    return file


def proof_of(script: Path, fault: str = "none", kills: int = 0) -> tuple[Proof, list[str]]:
    said: list[str] = []
    command = [sys.executable, str(script), fault, str(kills)]
    return Proof(command, [], "run_dir", script.parent / "proof", limit_s=60.0, tell=said.append), said


def test_a_run_that_resumes_exactly(script: Path) -> None:
    proof, said = proof_of(script, kills=2)
    step_s = proof.unbroken()
    assert 0.1 <= step_s < 0.2
    proof.broken([Kill("actor-0", 4, 0.5), Kill("driver", 2)], step_s)
    assert [str(kill) for kill in proof.struck] == ["driver@2+0.00", "actor-0@4+0.50"]
    assert re.search(r"ended with signal 9 after [\d.]+ s; resumed from step \d", said[0])
    assert re.search(r"ended with exit code 1 after [\d.]+ s; resumed from step \d", said[1])
    assert proof.compare().lines[-1] == "the runs are the same, bit for bit"
    words = proof._started("whole")._words
    assert words[words.index("--") + 1 :] == [*UNWATCHED, f"run_dir={proof.folder / 'whole'}"]


def test_what_is_only_compared_is_sent_to_nobody() -> None:
    report = load_config(TINY, ["report.trackers=[{type: wandb}]", *UNWATCHED]).report
    assert report.trackers == [] and not report.ray_metrics


def test_a_loss_is_noticed(script: Path) -> None:
    proof, _ = proof_of(script, "forgets", kills=1)
    proof.broken([Kill("driver", 2)], proof.unbroken())
    said = proof.compare().lines[-1]  # the kill may come before the checkpoint of its step, or late
    assert re.match(r"the runs part at step ([2-6]): step \1 weight: ", said), said


def test_a_kill_before_the_first_checkpoint_starts_anew(script: Path) -> None:
    proof, said = proof_of(script, "saves late", kills=1)
    proof.broken([Kill("driver", 1)], proof.unbroken())
    assert "before the first checkpoint; started anew" in said[0]
    assert proof.compare().first is None


def test_a_kill_that_came_too_late_is_said(script: Path) -> None:
    proof, said = proof_of(script)
    proof.unbroken()
    proof.broken([Kill("actor-7", 2)], 0.1)
    assert said == ["actor-7@2+0.00: not done, the run had ended"]
    assert proof.struck == []


def test_a_run_that_ends_by_itself(script: Path) -> None:
    proof, _ = proof_of(script, "ends")
    with pytest.raises(TetrarchError, match=r"the unbroken run ended with exit code 1:\nno more"):
        proof.unbroken()
    with pytest.raises(TetrarchError, match=r"the run ended by itself with exit code 1:\nno more"):
        proof.broken([Kill("driver", 5)], 0.1)


def test_a_run_that_never_ends(script: Path) -> None:
    proof, _ = proof_of(script, "never ends")
    proof.limit_s = 0.3
    with pytest.raises(TetrarchError, match=r"the run has not ended within .*; raise --limit-s"):
        proof.unbroken()


def test_what_is_written_as_a_kill() -> None:
    assert Kill.parse("actor-1@3") == Kill("actor-1", 3, 0.0)
    assert Kill.parse("reward-0@3+0.25") == Kill("reward-0", 3, 0.25)
    for wrong in ("actor", "actor@", "@3", "actor-1@3+2", "actor-1@-1", ""):
        with pytest.raises(ConfigError, match="write VICTIM@STEP"):
            Kill.parse(wrong)


def test_random_kills_follow_from_their_seed() -> None:
    kills = random_kills(5, 20, ["driver", "actor-0"], seed=3)
    assert kills == random_kills(5, 20, ["driver", "actor-0"], seed=3) != random_kills(5, 20, ["driver", "actor-0"], 4)
    assert len({kill.step for kill in kills}) == 5
    assert all(1 <= kill.step < 20 and 0 <= kill.share <= 1 for kill in kills)


def test_a_folder_of_somebody_else_is_left_alone(script: Path) -> None:
    proof, _ = proof_of(script)
    mine = proof.folder / "whole" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="was not made by an earlier proof or replay"):
        proof.unbroken()
    assert mine.read_text() == "mine"
