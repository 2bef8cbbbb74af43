"""`tetrarch report`: the page of a run under way, broken or done, and of several."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from orchestrator.commands.app import app
from orchestrator.run.run_lock import held

RUNNER = CliRunner()


def a_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 1, "score/mean": 0.5}\n{"step": 2, "sco')
    return folder


def test_a_broken_run_has_a_report(tmp_path: Path) -> None:
    run = a_run(tmp_path / "broken")
    done = RUNNER.invoke(app, ["report", str(run)])
    assert done.exit_code == 0 and done.stdout.strip() == str(run / "report.html")
    assert "interrupted, 1 of 1 step<" in (run / "report.html").read_text(encoding="utf-8")


def test_a_run_that_goes_on_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    runs, pages = [a_run(tmp_path / name) for name in ("a", "b")], [tmp_path / "one.html", tmp_path / "both.html"]
    with held(runs[0]):
        for asked, page in zip((runs[:1], runs), pages, strict=True):
            assert RUNNER.invoke(app, ["report", *map(str, asked), "--output", str(page)]).exit_code == 0
    one, both = (page.read_text(encoding="utf-8") for page in pages)
    assert '<span class="pill running">running, 1 of 1 step<' in one
    assert "running, 1 of 1 step<" in both and "interrupted, 1 of 1 step<" in both


def test_several_runs_are_compared(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / name) for name in ("a", "b")]
    page = tmp_path / "page.html"
    done = RUNNER.invoke(app, ["report", *map(str, runs), "--output", str(page)])
    assert done.exit_code == 0 and "2 runs" in page.read_text(encoding="utf-8")
    assert not (runs[0] / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    refused = RUNNER.invoke(app, ["report", str(run), str(tmp_path / "empty")])
    assert refused.exit_code == 2 and "empty holds neither run.json nor metrics.jsonl" in refused.stderr
    nowhere = RUNNER.invoke(app, ["report", str(run), "--output", str(tmp_path / "no/page.html")])
    assert nowhere.exit_code == 2 and "does not exist; make it" in nowhere.stderr
    (run / "run.json").write_text("{")
    damaged = RUNNER.invoke(app, ["report", str(run)])
    assert damaged.exit_code == 2 and "run.json is not as a run has written it" in damaged.stderr
