"""`tetrarch diff`, `replay` and `verify-resume` at the terminal: exit codes, and what is refused at the door."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.commands.app import app
from orchestrator.commands.proof_commands import victims_of
from orchestrator.config.loading import load_config
from orchestrator.run.run_difference import RunDifference
from tests.unit.orchestrator.run.test_run_difference import a_run, edited

TINY = str(Path(__file__).resolve().parents[4] / "configs" / "tiny.yaml")


def told(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, words)
    return result.exit_code, result.output


def test_diff_says_whether_runs_are_the_same(tmp_path: Path) -> None:
    first, second = a_run(tmp_path / "first"), a_run(tmp_path / "second")
    code, output = told("diff", str(first), str(second))
    assert (code, output.splitlines()[-1]) == (0, "the runs are the same, bit for bit")
    edited("metrics.jsonl", "0.2,", "0.25,")(second)
    code, output = told("diff", str(first), str(second))
    assert (code, output.splitlines()[-1]) == (3, "the runs part at step 2: step 2 score/mean: 0.2 and 0.25")
    code, output = told("diff", str(first), str(second), "--json")
    assert (code, json.loads(output)["first"]["step"]) == (3, 2)
    assert told("diff", str(first), str(tmp_path / "nothing"))[0] == 2


def test_secrets_of_a_replay_are_given_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[Sequence[str]]()

    def replayed(run: Path, step: int, folder: Path, overrides: Sequence[str], limit_s: float) -> RunDifference:
        asked.append(overrides)
        return RunDifference([])

    monkeypatch.setattr("orchestrator.stages.replay.replayed", replayed)
    run, secret = a_run(tmp_path / "run"), "reward.headers.authorization=hush"
    code, output = told("replay", str(run), "3", secret)
    assert code == 2 and "hush" not in output
    (tmp_path / "secrets").write_text(f"# of the service\n{secret}\n\n")
    assert told("replay", str(run), "3", "seed=2", "--secrets", str(tmp_path / "secrets"))[0] == 0
    assert asked == [["seed=2", secret]]
    code, output = told("replay", str(run), "3", "--secrets", str(tmp_path / "none"))
    assert code == 2 and "cannot be read" in output


def test_who_can_be_killed() -> None:
    config = load_config(Path(TINY))
    roles = ("actor", "critic", "reference", "reward", "rollout")
    assert sorted(victims_of("train", config)) == sorted(["driver", *(f"{role}-{n}" for role in roles for n in (0, 1))])
    kept = load_config(Path(TINY), ["row_keepers=2", "report.samples=null"])
    assert set(victims_of("train", kept)) - set(victims_of("train", config)) == {"keeper-0", "keeper-1"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--kill", "actor"], "--kill=actor: write VICTIM@STEP or VICTIM@STEP+SHARE"),
        (["--kill", "actor-7@1"], "--kill=actor-7@1+0.00: there is no actor-7; choose among driver, "),
        (["--kill", "judge@1"], "there is no judge"),
        (["--kill", "driver@4"], "--kill=driver@4+0.00: the run ends with step 4; kill earlier, or raise --steps"),
        (["--kills", "4"], "--kills=4: each hits another step, and the last step ends the run; raise --steps"),
        (["--command", "sing"], "--command=sing: must be one of"),
    ],
)
def test_what_cannot_be_killed_is_refused_before_anything_runs(words: list[str], said: str) -> None:
    code, output = told("verify-resume", TINY, *words)
    assert code == 2
    assert said in output
