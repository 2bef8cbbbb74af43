"""`tetrarch runs`: every run below a folder, and the state that it really is in."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.commands.app import app
from orchestrator.errors import ConfigError
from orchestrator.report.run_files import read_record, write_state
from orchestrator.run.found_runs import FoundRun, found_runs
from orchestrator.run.run_lock import LOCK, VOID_S, Holder, held
from tests.unit.orchestrator.run.test_run_difference import STEPS, a_run


def only(folder: Path) -> FoundRun:
    (run,) = found_runs([folder])
    return run


def test_a_run_is_found_with_its_step_and_where_it_resumes(tmp_path: Path) -> None:
    a_run(tmp_path / "series/first")
    run = only(tmp_path)
    assert (run.run, run.state, run.step, run.steps) == (str(tmp_path / "series/first"), "done", STEPS, STEPS)
    assert run.resumes == 4 and run.numbers.startswith("score +0.400")


@pytest.mark.parametrize("status", ["done", "stopped", "failed"])
def test_a_run_is_what_it_said_last(tmp_path: Path, status: str) -> None:
    folder = a_run(tmp_path / "run")
    write_state(folder, replace(read_record(folder).state, status=status))
    assert only(tmp_path).state == status


def test_a_run_that_stands_as_running_runs_only_while_somebody_holds_it(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "run")
    write_state(folder, replace(read_record(folder).state, status="running"))
    assert only(tmp_path).state == "interrupted"
    with held(folder):
        assert only(tmp_path).state == "running"


@pytest.mark.parametrize(("silent_s", "state"), [(0.0, "running"), (2 * VOID_S, "interrupted")])
def test_a_list_writes_nothing_and_waits_for_no_other_machine(
    tmp_path: Path, silent_s: float, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = a_run(tmp_path / "run")
    write_state(folder, replace(read_record(folder).state, status="running"))
    far = Holder("far-away", 7, 0.0, "another boot", "", "10:00", "k")
    (folder / LOCK).write_text(json.dumps(asdict(far)))
    touched = time.time() - silent_s
    os.utime(folder / LOCK, (touched, touched))
    before = folder.stat().st_mtime_ns
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    assert only(tmp_path).state == state
    assert folder.stat().st_mtime_ns == before, "a file was made there"


def test_a_damaged_run_costs_no_other_its_line(tmp_path: Path) -> None:
    a_run(tmp_path / "good")
    (a_run(tmp_path / "bad") / "run.json").write_text("{")
    listed = {Path(run.run).name: run for run in found_runs([tmp_path])}
    assert (listed["good"].state, listed["bad"].state) == ("done", "damaged")
    assert "bad/run.json is not as a run has written it" in listed["bad"].numbers and listed["bad"].resumes == 4


def test_what_was_set_aside_is_no_run_and_none_is_listed_twice(tmp_path: Path) -> None:
    a_run(tmp_path / "run")
    a_run(tmp_path / "run/set-aside/1")
    assert [run.run for run in found_runs([tmp_path, tmp_path / "run", tmp_path])] == [str(tmp_path / "run")]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no/such is not a folder"):
        list(found_runs([Path("no/such")]))


def test_the_lines_and_the_json(tmp_path: Path) -> None:
    a_run(tmp_path / "run\x1b[31m")
    told = CliRunner().invoke(app, ["runs", str(tmp_path)]).output.splitlines()
    assert told[0].split() == ["run", "kind", "state", "step", "resumes", "started"]
    assert "done" in told[1] and "4/4" in told[1] and "at 4" in told[1] and "\x1b" not in told[1]
    assert json.loads(CliRunner().invoke(app, ["runs", str(tmp_path), "--json"]).output)[0]["step"] == 4
    (tmp_path / "none").mkdir()
    assert "no run here yet" in CliRunner().invoke(app, ["runs", str(tmp_path / "none")]).output
