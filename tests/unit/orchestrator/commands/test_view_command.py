"""`tetrarch view`: where it listens, what it says, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from orchestrator.commands import view_command
from orchestrator.commands.app import app
from tests.unit.orchestrator.commands.test_report_command import a_run

RUNNER = CliRunner()
ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def taken() -> int:
    """A port at which something listens, as long as the test runs."""
    other = socket.socket()
    other.bind(("127.0.0.1", 0))
    other.listen()
    yield other.getsockname()[1]  # type: ignore[misc]
    other.close()


def test_a_folder_without_runs_is_one_error_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = RUNNER.invoke(app, ["view", str(tmp_path)])
    assert (
        refused.exit_code == 2 and "there is no run in" in refused.stderr and "tetrarch train CONFIG" in refused.stderr
    )
    monkeypatch.chdir(tmp_path)
    nowhere = RUNNER.invoke(app, ["view"])
    assert nowhere.exit_code == 2 and "runs is not a folder" in nowhere.stderr


def test_a_port_that_is_asked_for_and_taken_is_an_error(tmp_path: Path, taken: int) -> None:
    refused = RUNNER.invoke(app, ["view", str(a_run(tmp_path / "run")), "--port", str(taken)])
    assert refused.exit_code == 2 and f"--port={taken}: the port is in use at 127.0.0.1" in refused.stderr
    assert "set --port to another one" in refused.stderr


def test_the_usual_port_is_replaced_by_a_free_one(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_command, "PORT", taken)
    with view_command._listening(None) as found:
        assert found.getsockname()[0] == "127.0.0.1" and found.getsockname()[1] != taken


def test_it_says_where_it_is_answers_there_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    words = [sys.executable, "-m", "orchestrator", "view", str(run), "--port", "0"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}) as viewer:
        try:
            assert viewer.stdout is not None
            said = viewer.stdout.readline()
            url = re.search(r"open (http://127\.0\.0\.1:\d+) in a browser", said)
            assert url is not None, said
            told = httpx.get(f"{url[1]}/api/runs", trust_env=False, timeout=60).json()
            assert [line["run"] for line in told["runs"]] == [str(run)]
            viewer.send_signal(signal.SIGINT)
            assert viewer.wait(60) == 130
        finally:
            viewer.kill()
