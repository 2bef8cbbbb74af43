"""Each tracker against what its own library has written; skipped where the library is not installed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.config.trackers import MlflowConfig, SwanlabConfig, TensorboardConfig, TrackioConfig, WandbConfig
from orchestrator.report.alert_lines import Alert
from orchestrator.report.reporter import Reporter

BLOCK = 32768
CONFIG = "seed: 1\nactor: {model: {path: /models/tiny}, header: '***'}\n"


def run(folder: Path, config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Three steps, of which the third is done again by a resumed run; one alert; a report."""
    for resume_step, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        options = {"name": "mine", "title": "PPO", "config_yaml": CONFIG, "steps": 4, "resume_step": resume_step}
        with Reporter(folder, **options, tensorboard=False, trackers=[config]) as report:  # type: ignore[arg-type]
            for step in steps:
                report.step(step, {"score/mean": step / 2, "objective/kl": float("nan")})
            report.alert(Alert(steps[-1], "kl", "warn", "objective/kl 12", "It is far."))
    told = "".join(capsys.readouterr())
    assert "has failed" not in told and "has not taken" not in told, told


def test_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, TensorboardConfig(aliases=True), capsys)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("score/mean")] == [(n, n / 2) for n in (1, 2, 3, 4)]
    assert [e.step for e in events.Scalars("ppo/mean_scores")] == [1, 2, 3, 4]


def records(file: Path) -> Iterator[bytes]:
    """The records of a file of W&B: LevelDB's log format behind a head of seven bytes."""
    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_wandb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run(tmp_path, WandbConfig(type="wandb", project="p", mode="offline", aliases=True), capsys)
    wandb.teardown()  # its process writes the last records when it ends
    ids, rows, configs, files, alerts = set(), [], set(), set(), 0
    for file in sorted(tmp_path.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            kind = record.WhichOneof("record_type")
            if kind == "run":
                assert record.run.host == ""
                ids.add((record.run.run_id, record.run.display_name, record.run.project))
                configs |= {update.key or ".".join(update.nested_key) for update in record.run.config.update}
            elif kind == "history":
                row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
                rows.append((int(row["step"]), float(row["score/mean"]), float(row["ppo/mean_scores"])))
            elif kind == "files":
                files |= {item.path for item in record.files.files}
            elif kind == "alert":
                alerts += 1
                assert record.alert.title == f"kl (step {2 + alerts})"
    assert len(ids) == 1 and {found[1:] for found in ids} == {("mine", "p")}, "the resumed run is the same"
    assert sorted(rows) == [(n, n / 2, n / 2) for n in (1, 2, 3, 3, 4)]
    assert {"seed", "actor"} <= configs and "report.html" in files and alerts == 2
    assert (tmp_path / "config.yaml").read_text() == CONFIG and "config.yaml" not in files
    assert not {"code", "diff.patch", "requirements.txt"} & {path.split("/")[0] for path in files}
    written = b"".join(file.read_bytes() for file in tmp_path.glob("wandb/offline-run-*/*.wandb"))
    told = {sys.executable, sys.argv[0], str(Path.cwd()), str(Path.home())} - {""}
    assert [text for text in told if text.encode() in written] == []


def test_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    run(tmp_path / "run", MlflowConfig(type="mlflow", uri=uri, experiment="e"), capsys)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (found,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert found.info.run_name == "mine" and found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "score/mean")
    assert sorted((m.step, m.value) for m in history) == [(n, n / 2) for n in (1, 2, 3, 3, 4)]
    assert found.data.params["actor.model.path"] == "/models/tiny" and found.data.params["seed"] == "1"
    assert found.data.tags["alert step 4 kl"].startswith("kl in step 4")
    assert {item.path for item in client.list_artifacts(found.info.run_id)} == {"config.yaml", "report.html"}


def test_trackio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In a process of its own: trackio reads the place of its store when it is imported."""
    pytest.importorskip("trackio")
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "store")}
    subprocess.run([sys.executable, __file__, str(tmp_path)], check=True, env=environment, timeout=120)


def _trackio(tmp_path: Path) -> None:
    import trackio

    silent: Any = type("Silent", (), {"readouterr": lambda self: ("", "")})()
    run(tmp_path / "run", TrackioConfig(type="trackio", project="p"), silent)
    (found,) = trackio.Api().runs("p")
    assert found.name == "mine"
    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("p", "mine")
    steps = sorted((row["step"], row["score/mean"]) for row in rows if "score/mean" in row)
    assert steps == [(n, n / 2) for n in (1, 2, 3, 3, 4)], rows
    assert found.config["seed"] == 1 and "kl (step 4)" in [alert["title"] for alert in found.alerts()]


def test_swanlab(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("swanlab")
    run(tmp_path, SwanlabConfig(type="swanlab", project="p", mode="offline"), capsys)
    for file in (files := sorted(tmp_path.glob("swanlog/*/*.swanlab"))):
        written = b"".join(records(file))  # the same format of a file as W&B's
        assert b"score/mean" in written and b"mine" in written and b"alerts" in written
        assert b"ETA" not in written, "the terminal is not recorded"
        assert "seed" in (file.parent / "files/config.yaml").read_text()
    assert len(files) == 2, "offline a resumed run is another one"


if __name__ == "__main__":
    _trackio(Path(sys.argv[1]))
