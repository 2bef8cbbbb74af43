"""What trackers are sent, and that none of them stops or delays a run."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import Terminated
from cluster.runtime.orders import Orders
from orchestrator.checks.tracker_packages import check_trackers
from orchestrator.config.loading import load_config
from orchestrator.config.report import ReportConfig
from orchestrator.config.trackers import MlflowConfig, SwanlabConfig, WandbConfig
from orchestrator.errors import ConfigError, StopTraining
from orchestrator.metrics import METRICS
from orchestrator.report.alert_lines import Alert
from orchestrator.report.reporter import Reporter
from orchestrator.tracking import trackers
from orchestrator.tracking.metric_aliases import ALIASES, with_aliases
from orchestrator.tracking.swanlab_tracker import SwanlabTracker
from orchestrator.tracking.tracked_run import TrackedRun
from orchestrator.tracking.trackers import UNSENT, Trackers
from orchestrator.tracking.wandb_tracker import WandbTracker

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"


class Kept:
    """A tracker that keeps what it is sent, in memory."""

    def __init__(self, config: Any) -> None:
        self.config, self.calls = config, list[tuple[Any, ...]]()

    def start(self, run: TrackedRun) -> str | None:
        self.calls.append(("start", run))
        return f"its-{self.config.type}"

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.calls.append(("log", step, dict(metrics)))

    def alert(self, step: int, title: str, text: str) -> None:
        self.calls.append(("alert", step, title, text))

    def files(self, paths: Sequence[Path]) -> None:
        self.calls.append(("files", [path.name for path in paths]))

    def finish(self, *, done: bool) -> None:
        self.calls.append(("finish", done))


class Broken(Kept):
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        raise ConnectionError("no way to https://user:pass@host/x\nmore")


class NoFiles(Kept):
    def files(self, paths: Sequence[Path]) -> None:
        raise PermissionError


class NotMade(Kept):
    def __init__(self, config: Any) -> None:
        raise ImportError("a library is too old")


class Hanging(Kept):
    go_on = threading.Event()

    def start(self, run: TrackedRun) -> str | None:
        self.go_on.wait(200)
        return None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Kind → class of its tracker; the trackers that were made, under `all`."""
    Hanging.go_on.clear()
    classes: dict[str, Any] = {"wandb": Kept, "mlflow": Kept, "all": []}

    def make(kind: str) -> Any:
        def maker(config: Any) -> Any:
            classes["all"].append(classes[kind](config))
            return classes["all"][-1]

        return maker

    monkeypatch.setattr(trackers, "MADE_BY", {kind: make(kind) for kind in ("wandb", "mlflow")})
    return classes


BOTH = [WandbConfig(type="wandb", name="mine", aliases=True), MlflowConfig(type="mlflow")]


def reporter(folder: Path, **more: Any) -> Reporter:
    settings = {"name": "tiny", "steps": 3, "title": "PPO", "config_yaml": "seed: 1\n", "tensorboard": False}
    return Reporter(folder, **{"html": True, "trackers": BOTH, **settings, **more})


METRICS_OF_A_STEP = {"score/mean": 0.5, "objective/kl": math.nan, "policy/approx_kl": 0.01}


def test_a_run_and_its_end_are_sent(made: dict[str, Any], tmp_path: Path) -> None:
    with reporter(tmp_path) as report:
        report.step(1, METRICS_OF_A_STEP)
        report.alert(Alert(1, "kl", "warn", "objective/kl 12", "It is far."))
    one, other = made["all"]
    assert [call[0] for call in one.calls] == ["start", "log", "alert", "files", "finish"]
    run = other.calls[0][1]
    assert (run.name, run.title, run.config, run.id) == ("tiny", "PPO", {"seed": 1}, None)
    assert one.calls[0][1].name == "mine"
    assert other.calls[1] == ("log", 1, {"score/mean": 0.5, "policy/approx_kl": 0.01})
    assert one.calls[1][2]["ppo/mean_scores"] == 0.5 and one.calls[1][2]["ppo/policy/approxkl"] == 0.01
    assert other.calls[2] == ("alert", 1, "kl", "kl in step 1: objective/kl 12. It is far.")
    assert other.calls[3:] == [("files", ["config.yaml", "report.html"]), ("finish", True)]


@pytest.mark.parametrize(
    ("error", "done"),
    [(OSError(), False), (KeyboardInterrupt(), True), (Terminated(), True), (StopTraining("enough"), True)],
)
def test_a_run_that_fails_is_said_to_and_one_that_is_stopped_is_not(
    made: dict[str, Any], tmp_path: Path, error: BaseException, done: bool
) -> None:
    with pytest.raises(type(error)), reporter(tmp_path):
        raise error
    assert [tracker.calls[-1] for tracker in made["all"]] == [("finish", done)] * 2


@pytest.mark.parametrize("kind", [Broken, NoFiles])
def test_one_that_fails_is_finished_all_the_same(made: dict[str, Any], tmp_path: Path, kind: type[Kept]) -> None:
    made["wandb"] = kind
    with reporter(tmp_path) as report:
        report.step(1, METRICS_OF_A_STEP)
    assert made["all"][0].calls[-1] == ("finish", True)


def test_after_a_request_to_end_no_longer_is_waited_than_the_grace(
    made: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made["wandb"], told = Hanging, Orders()
    told.told, told.grace_s, told._at = Terminated, 0.1, time.monotonic()
    monkeypatch.setattr("orchestrator.report.reporter.ORDERS", told)
    began = time.monotonic()
    with reporter(tmp_path, trackers_s=150.0):
        pass
    Hanging.go_on.set()
    assert time.monotonic() - began < 100 and "deadlines.grace_s" in "".join(capsys.readouterr())


def test_a_resumed_run_goes_on_as_the_same_and_a_new_one_does_not(made: dict[str, Any], tmp_path: Path) -> None:
    for resume_step in (0, 1, 0):
        with reporter(tmp_path, resume_step=resume_step) as report:
            report.step(resume_step + 1, METRICS_OF_A_STEP)
    ids = [tracker.calls[0][1].id for tracker in made["all"]]
    assert ids == [None, None, "its-wandb", "its-mlflow", None, None]
    names = {"wandb tetrarch": "its-wandb", "mlflow tetrarch": "its-mlflow"}
    assert json.loads((tmp_path / "trackers.json").read_text()) == names
    other = WandbConfig(type="wandb", project="other")
    with reporter(tmp_path, resume_step=1, trackers=[other, *reversed(BOTH)]):
        pass
    assert [tracker.calls[0][1].id for tracker in made["all"][-3:]] == [None, "its-mlflow", "its-wandb"], "not by place"


@pytest.mark.parametrize("kind", [Broken, NotMade])
def test_one_that_fails_is_told_once_without_secrets_and_the_others_go_on(
    made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: type[Kept]
) -> None:
    made["wandb"] = kind
    with reporter(tmp_path) as report:
        for step in (1, 2, 3):
            report.step(step, METRICS_OF_A_STEP)
            time.sleep(0.05)
    told = "".join(capsys.readouterr())
    assert told.count("wandb has failed") == 1 and "pass@" not in told and "the run goes on without it" in told
    assert [call[0] for call in made["all"][-1].calls] == ["start", "log", "log", "log", "files", "finish"]


def test_one_that_hangs_delays_nothing_and_is_waited_for_once(
    made: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made["wandb"] = Hanging
    began = time.monotonic()
    with reporter(tmp_path, trackers_s=0.5) as report:
        report.step(1, METRICS_OF_A_STEP)
    took = time.monotonic() - began
    Hanging.go_on.set()
    assert 0.5 <= took < 100
    told = "".join(capsys.readouterr())
    assert told.count("wandb has not taken everything within 0.5 s (report.trackers_s,") == 1
    give_up = time.monotonic() + 60
    while made["all"][-1].calls[-1] != ("finish", True):  # the other one, within its own time
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_what_waits_for_one_that_hangs_is_bounded(made: dict[str, Any], tmp_path: Path) -> None:
    made["wandb"], told = Hanging, list[str]()
    run = TrackedRun(tmp_path, "tiny", "PPO", {})
    found = Trackers(BOTH[:1], run, 0, told.append, 150.0)
    for step in range(2 * UNSENT):
        found.log(step, {})
    began = time.monotonic()
    found.close([], done=True)
    assert time.monotonic() - began < 100 and told == [
        "wandb takes nothing any more: it hangs. The run goes on without it"
    ]
    Hanging.go_on.set()


@pytest.mark.parametrize("kind", ["wandb", "swanlab"])
def test_what_links_to_files_and_writes_a_config_yaml_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The library's own `config.yaml` would be written through the link to the run's."""
    saved, config = list[str](), {"wandb": WandbConfig, "swanlab": SwanlabConfig}[kind](type=kind)
    library = SimpleNamespace(
        Settings=lambda **_: None,
        init=lambda **_: SimpleNamespace(
            id="x", define_metric=lambda *_, **__: None, save=lambda path, **_: saved.append(Path(path).name)
        ),
    )
    monkeypatch.setattr(f"orchestrator.tracking.{kind}_tracker.import_module", lambda name: library)
    tracker = {"wandb": WandbTracker, "swanlab": SwanlabTracker}[kind](config)
    tracker.start(TrackedRun(tmp_path, "tiny", "PPO", {}))
    tracker.files([tmp_path / "config.yaml", tmp_path / "report.html"])
    assert saved == ["report.html"]


def test_wandb_is_not_told_who_runs_what_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own default it records the machine's name, the user and the command line, which may hold secrets."""
    said = dict[str, Any]()
    run = SimpleNamespace(id="x", define_metric=lambda *_, **__: None)
    library = SimpleNamespace(Settings=said.update, init=lambda **_: run)
    monkeypatch.setattr("orchestrator.tracking.wandb_tracker.import_module", lambda name: library)
    WandbTracker(WandbConfig(type="wandb")).start(TrackedRun(tmp_path, "tiny", "PPO", {}))
    assert said["x_disable_meta"] is said["disable_git"] is True and said["host"] == "" and said["console"] == "off"
    assert said["save_code"] is said["x_save_requirements"] is False


def test_every_alias_is_a_metric_under_another_name() -> None:
    assert set(ALIASES.values()) <= set(METRICS) and not set(ALIASES) & set(METRICS)
    asked = {"ppo/mean_scores", "ppo/policy/approxkl", "ppo/policy/clipfrac", "train/kl", "train/reward"}
    assert asked <= set(ALIASES) and {"objective/kl", "objective/entropy"} <= set(METRICS)
    assert with_aliases({"score/mean": 2.0}) == {
        **{"score/mean": 2.0, "ppo/mean_scores": 2.0, "objective/scores": 2.0, "train/reward": 2.0}
    }


def test_a_missing_package_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.checks.tracker_packages.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"report\.trackers\[1\]\.type=mlflow.*pip install mlflow"):
        monkeypatch.setattr("orchestrator.checks.tracker_packages.find_spec", lambda name: name == "wandb" or None)
        check_trackers(ReportConfig(trackers=BOTH))
    check_trackers(ReportConfig())


def test_the_keys_are_read() -> None:
    found = load_config(TINY, ["report.trackers=[{type: wandb, project: x, mode: offline}, {type: trackio}]"])
    assert [tracker.type for tracker in found.report.trackers] == ["wandb", "trackio"]
    with pytest.raises(ConfigError, match="projects"):
        load_config(TINY, ["report.trackers=[{type: wandb, projects: x}]"])
