"""What the viewer does not show: other files, what is not there, secrets; and whom it does not answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from orchestrator.errors import ConfigError
from orchestrator.viewer.sample_store import SampleStore
from orchestrator.viewer.shelf import Shelf
from orchestrator.viewer.viewer_app import STATIC
from tests.unit.orchestrator.viewer.viewer_client import Viewer
from tests.unit.orchestrator.viewer.written_runs import (
    a_run,
)


def test_only_files_of_the_named_runs_are_read(whole: Path, tmp_path: Path) -> None:
    secret = a_run(tmp_path / "secret", steps=1)
    viewer = Viewer(whole)
    places = [str(secret), f"{whole}/../{whole.name}", os.path.relpath(secret), "..", "", f"{whole}/set-aside", "/etc"]
    for place in places:
        for path, more in (("run", {}), ("samples", {"at": "1"}), ("sample", {"at": "1", "row": 0})):
            assert "is no run that this viewer shows" in viewer.refusal(404, path, run=place, **more)
        assert "is no run" in viewer.refusal(404, "charts", run=[str(whole), place])
        assert "is no run" in viewer.refusal(404, "same-prompt", run=str(whole), at="1", row=0, other=[place])
    for at in ("../1", "1/../../secret", "-1", "٣", "e", "1e3", "9" * 30, ""):
        assert "is no place" in viewer.refusal(400, "samples", run=str(whole), at=at)
    for name in ("shelf.py", "..%2Fshelf.py", "../shelf.py", "%2Fetc%2Fpasswd", "viewer.html"):
        assert viewer.client.get(f"/static/{name}").status_code == 404
    assert viewer.client.get("/openapi.json").status_code == 404


def test_what_is_not_there_is_said(whole: Path) -> None:
    viewer, run = Viewer(whole), str(whole)
    assert viewer.refusal(404, "samples", run=run, at="9") == "step 9 has no samples here"
    assert "the run has 2 evaluations" in viewer.refusal(404, "samples", run=run, at="e7")
    assert "the step has 3 samples" in viewer.refusal(404, "sample", run=run, at="1", row=3)
    assert "shows 2 samples" in viewer.refusal(404, "sample", run=run, at="e0", row=2)
    assert "there is no column 'x'" in viewer.refusal(400, "samples", run=run, at="1", where=["x>1"])
    long = {"run": run, "at": "1", "where": ["a" + " " * 2000 + "b"]}
    assert viewer.client.get("/api/samples", params=long).status_code == 422, "a long text is looked at no further"


def test_a_file_that_goes_while_it_is_read_is_said(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = Viewer(whole)
    viewer.client = TestClient(viewer.client.app, base_url="http://127.0.0.1:8470", raise_server_exceptions=False)

    def gone(*asked: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory", "step-000001.parquet")

    monkeypatch.setattr(SampleStore, "_known", gone)
    assert "step-000001.parquet" in viewer.refusal(500, "samples", run=str(whole), at="1")


def test_other_names_of_this_machine_are_refused(whole: Path) -> None:
    """A page of a stranger whose name is made to lead to 127.0.0.1 is told nothing."""
    client = Viewer(whole).client
    for host, status in (
        ("evil.example:8470", 400),
        ("evil.example", 400),
        ("localhost:9000", 200),
        ("127.0.0.1", 200),
    ):
        assert client.get("/api/runs", headers={"Host": host}).status_code == status
    assert client.post("/api/runs").status_code == 405


def test_the_page_may_load_and_run_its_own_files_alone(whole: Path) -> None:
    client = Viewer(whole).client
    for path in ("/", "/static/page.js", "/api/runs", "/api/run?run=x", "/nowhere"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy and "frame-ancestors 'none'" in policy
    page = client.get("/").text
    texts = [page, *(client.get(f"/static/{name}").text for name in STATIC), client.get("/static/colours.css").text]
    assert not [text for text in texts if "http://" in text or "https://" in text or "innerHTML" in text]
    assert client.get("/static/plotly.js").headers["content-type"].startswith("text/javascript")


def test_secrets_that_the_report_would_not_show_are_not_sent(tmp_path: Path) -> None:
    """What the viewer sends of a configuration is nothing."""
    run = a_run(tmp_path / "run", steps=1)
    (run / "config.yaml").write_text("run_dir: x\nactor: {model: {path: y}}\nserving: {api_key: hunter2}\n")
    viewer = Viewer(run)
    asked: list[tuple[str, dict[str, Any]]] = [("runs", {}), ("run", {}), ("charts", {}), ("samples", {"at": "1"})]
    asked += [("sample", {"at": "1", "row": 0}), ("same-prompt", {"at": "1", "row": 0})]
    assert not [path for path, more in asked if "hunter2" in json.dumps(viewer.ask(path, run=str(run), **more))]


def test_no_run_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no run in .*; name a run's folder .* or start one first"):
        Shelf([tmp_path])
    with pytest.raises(ConfigError, match="is not a folder"):
        Shelf([tmp_path / "nowhere"])
