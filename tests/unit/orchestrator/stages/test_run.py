"""A run of a stage that only counts: what a new stage gains from `orchestrator.stages.run` by a dozen lines of its own.

Reports, checkpoints and signals are real; a trained group is a number in a file.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

import orchestrator.run.model_contents
import orchestrator.stages.run
from cluster.errors import RankFailure, Terminated
from cluster.ranks.calls import Call
from cluster.ranks.identity import Identity
from cluster.ranks.usage import Usage
from cluster.runtime.orders import Orders
from orchestrator.checks.run_folders import check_run_dir
from orchestrator.config.loading import load_config
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError, FileNotWritten, RollBack, StopTraining, TetrarchError
from orchestrator.report.run_files import read_record
from orchestrator.run.checkpoint import Checkpoint, Checkpoints
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume
from orchestrator.run.run_lock import held
from orchestrator.stages.run import carry_out
from orchestrator.stages.stage import Stage, StepReport

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"


class Counter:
    """A group without ranks whose weights are the number of updates."""

    ranks = ()
    updates = 0
    slow = 5
    """So many questions are asked before a copy is written."""

    def call(self, method: Any, folder: str = "") -> Any:
        if method.__name__ == "save_state":
            Path(folder).write_text(str(self.updates))
        elif method.__name__ == "begin_saving":
            self.copy, self.asked = (Path(folder), self.updates), 0
        elif method.__name__ == "written":
            self.asked += 1
            if self.asked == self.slow:
                self.copy[0].write_text(str(self.copy[1]))
            return Answer([{} if self.asked == self.slow else None])
        else:
            self.updates = int(Path(folder).read_text())
        return Call(method.__name__, [], [], [])


class Answer:
    """A call that has been answered; an error stands for what a rank has raised."""

    method, ranks, receipts, over = "written", (), (), True

    def __init__(self, values: list[Any] | Exception) -> None:
        self.values = values

    def result(self, deadline_s: float) -> Any:
        if isinstance(self.values, Exception):
            raise self.values
        return self.values


class Counting(Stage):
    """Twelve lines of a stage, and what a test does to it."""

    steps, step = 6, 0

    def __init__(self, run_dir: Path, trouble: BaseException | int | None, at: tuple[int, str]) -> None:
        self.counter, self.run_dir, self.trouble, self.at = Counter(), run_dir, trouble, at

    @property
    def trained(self) -> Any:
        return {"counter": self.counter}

    @property
    def cluster(self) -> Any:
        return SimpleNamespace(usage=self.usage)

    def usage(self) -> Usage:
        """What the ranks say of themselves."""
        if self.at == (self.step, "usage"):
            self.meet()
        return Usage([], 1.5, [])

    def before_save(self) -> None:
        if self.at == (self.step, "before_save"):
            self.meet()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state(self, checkpoint: Checkpoint) -> None:
        self.step = checkpoint.state["step"]

    def one_step(self, clock: Clock) -> StepReport:
        for phase in ("experience", "update"):
            with clock(phase):
                if self.trouble is not None and self.at == (self.step + 1, phase):
                    self.meet()
        self.counter.updates += 1
        self.step += 1
        if self.at == (self.step, "evaluate"):
            with clock("evaluate"):
                self.meet()
        failed = self.trouble if self.at == (self.step, "push") else None
        assert not isinstance(failed, int)
        return StepReport({"preference/loss": 1 / self.step}, keep=self.keep, failed=failed)

    def keep(self, file: Path) -> None:
        """Write the step's samples; the trouble comes in the thread that does."""
        if self.at == (int(file.stem[-6:]), "samples"):
            self.meet()
        file.parent.mkdir(exist_ok=True)
        parquet.write_table(pyarrow.table({"score": [0.5]}), file)

    def save_models(self) -> None:
        (self.run_dir / "model").write_text(str(self.counter.updates))

    def save_models_in(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model").write_text(str(self.counter.updates))

    def after_step(self, told: StepReport) -> None:
        if self.at == (self.step, "after"):
            self.meet()

    def meet(self) -> None:
        if isinstance(self.trouble, BaseException):
            raise self.trouble
        os.kill(os.getpid(), self.trouble or 0)


@pytest.fixture(autouse=True, params=["checkpoint.asynchronous=false", "checkpoint.asynchronous=true"])
def orders(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test is run with checkpoints that are written at once, and with those that are written while it goes on."""
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", (request.param,))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)}
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: True)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


SETTINGS: tuple[str, ...] = ()


def config_of(run_dir: Path) -> RunConfig:
    return load_config(TINY, [f"run_dir={run_dir}", "steps=6", "checkpoint={every: 4, keep: 9}", *SETTINGS])


def count(
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    resume: Resume = None,
    trouble: BaseException | int | None = None,
    at: tuple[int, str] = (0, ""),
) -> None:
    """A run of the stage; in the phase (or `after`) of the step in `at` comes the error or signal `trouble`."""
    monkeypatch.setattr(orchestrator.stages.run, "ORDERS", Orders())

    @contextmanager
    def start(report: Any) -> Iterator[Stage]:
        yield Counting(run_dir, trouble, at)

    carry_out(config_of(run_dir), resume, start, title="Counting", steps=Counting.steps)


def steps_of(run_dir: Path) -> list[int]:
    return Checkpoints(run_dir / "checkpoints", keep=9).steps()


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_whole_run_leaves_metrics_checkpoints_models_and_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(tmp_path, monkeypatch)
    assert steps_of(tmp_path) == [4, 6]
    assert (tmp_path / "model").read_text() == "6"
    assert [(line["step"], line["preference/loss"]) for line in metrics(tmp_path)] == [(n, 1 / n) for n in range(1, 7)]
    assert metrics(tmp_path)[0].keys() >= {"time/update_s", "time/step_s", "time/driver_s", "memory/host_peak_gib"}
    page = (tmp_path / "report.html").read_text()
    assert "Tetrarch · Counting" in page and "Preference loss" in page and "PPO" not in page.split("<details")[0]
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "done"


@pytest.mark.parametrize(
    ("trouble", "at", "raised", "saved"),
    [
        (RankFailure("counter rank 0 died"), (3, "experience"), RankFailure, 2),
        (MemoryError(), (3, "experience"), MemoryError, 2),
        (OSError(24, "Too many open files"), (3, "experience"), OSError, 2),
        (RankFailure("rollout rank 0 died"), (3, "after"), RankFailure, 3),
        (RankFailure("rollout rank 0 died"), (4, "before_save"), RankFailure, 4),
        (RankFailure("rollout rank 0 died"), (3, "push"), RankFailure, 3),
        (OSError(24, "Too many open files"), (3, "push"), OSError, 3),
        (signal.SIGTERM, (3, "experience"), Terminated, 2),
        (signal.SIGTERM, (3, "update"), Terminated, 3),
        (signal.SIGINT, (3, "update"), KeyboardInterrupt, 3),
        (StopTraining("far enough"), (3, "after"), StopTraining, 3),
    ],
)
def test_what_ends_a_run_early_leaves_the_last_whole_step_and_it_goes_on_from_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException | int,
    at: tuple[int, str],
    raised: type[BaseException],
    saved: int,
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(raised):
        count(tmp_path, monkeypatch, None, trouble, at)
    assert steps_of(tmp_path) == [saved]
    count(tmp_path, monkeypatch, "newest")
    assert (tmp_path / "model").read_text() == "6"
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert len(list((tmp_path / "samples").iterdir())) == 6


def test_a_step_whose_weights_could_not_be_sent_is_heeded_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an alert says counts, as it would in the resumed run; what `after_step` changes is in the checkpoint. An
    engine that is dead ends no wait for a trained group."""
    died, counted = RankFailure("rollout rank 0 died"), list[Any]()

    def after(stage: Counting, told: StepReport) -> None:
        stage.counter.updates = 7
        counted.append(orchestrator.stages.run.STARTED._only)

    monkeypatch.setattr(Counting, "after_step", after)
    with pytest.raises(RankFailure):
        count(tmp_path / "saved", monkeypatch, None, died, (3, "push"))
    assert (tmp_path / "saved/checkpoints/step-000003/counter").read_text() == "7"
    assert counted == [None, None, frozenset()]
    told = capsys.readouterr().out
    assert "the end of step 3 has failed" in told and "step-000003; go on from there with --resume" in told

    def back(stage: Counting, told: StepReport) -> None:
        raise RollBack("too far", "kl", 3, 2)

    monkeypatch.setattr(Counting, "after_step", back)
    with pytest.raises(RollBack):
        count(tmp_path / "back", monkeypatch, None, died, (3, "push"))
    assert steps_of(tmp_path / "back") == []


def test_figures_that_a_rank_does_not_give_cost_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count(tmp_path, monkeypatch, None, RankFailure("rollout rank 0 died"), (3, "usage"))
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert "times and memory are not known: rollout rank 0 died" in capsys.readouterr().out


@pytest.mark.parametrize(("at", "saved"), [((3, "experience"), 2), ((4, "before_save"), 4), ((4, "while it waits"), 4)])
def test_a_request_to_end_does_not_wait_until_the_models_are_hashed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: tuple[int, str],
    saved: int,
) -> None:
    """The checkpoint has the hashes that are known."""
    settings, hashed = [f"model_cache={tmp_path / 'cache'}"], threading.Event()
    for key in ("actor.model", "reference.model"):
        folder = tmp_path / key
        folder.mkdir()
        (folder / "config.json").write_text(key)
        settings.append(f"{key}={{path: {folder}}}")
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", (*SETTINGS, *settings))

    def slow(file: Path) -> str:
        if file.parent.name == "reference.model":
            assert hashed.wait(60)
        return file.read_text(errors="replace")  # weights too, where the example's models are there

    def later(stage: Counting) -> None:
        if (stage.step, "while it waits") == at:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        elif (stage.step, "before_save") == at:
            stage.meet()

    monkeypatch.setattr(Counting, "before_save", later)
    monkeypatch.setattr(orchestrator.run.model_contents, "hash_of", slow)
    timer = threading.Timer(20, hashed.set)
    timer.start()
    run = tmp_path / "run"
    with pytest.raises(Terminated):
        count(run, monkeypatch, None, signal.SIGTERM, at)
    assert not hashed.is_set(), "it waited"
    timer.cancel()
    hashed.set()
    assert steps_of(run)[0] == saved
    found = Checkpoints(run / "checkpoints", keep=9).of_step(saved)
    assert found is not None and found.state["models"]["actor"] == {"config.json": "actor.model"}
    assert "reference" not in found.state["models"]
    told = f"checkpoint {saved} lacks the hashes of models that were not read yet"
    assert told in capsys.readouterr().out


def test_samples_that_cannot_be_written_end_the_run_after_a_checkpoint_and_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one of the next steps, or at the end."""
    full = OSError(28, "No space left on device")
    for step, file in ((2, r"samples/step-000002\.parquet"), (6, r"samples/step-000006\.parquet")):
        run = tmp_path / str(step)
        with pytest.raises(FileNotWritten, match=f"{file} could not be written: No space left on device; go on with"):
            count(run, monkeypatch, None, full, (step, "samples"))
        saved = steps_of(run)
        assert saved and saved[-1] >= step
        assert read_record(run).state.status == "failed"
        count(run, monkeypatch, "newest")
        assert (run / "model").read_text() == "6"
        kept = {int(path.stem[-6:]) for path in (run / "samples").iterdir()}
        assert kept == {1, 2, 3, 4, 5, 6} - {step}


@pytest.mark.parametrize(("guilty", "waits"), [("reward", 1800.0), ("counter", 30.0)])
def test_a_sound_group_is_given_the_time_of_its_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, guilty: str, waits: float
) -> None:
    """It may be scoring a large batch; one that has failed itself is not waited for so long."""
    waited: list[float] = []
    monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: waited.append(within_s) or True)
    failed = RankFailure("it died", who=Identity(guilty, 0, "node-1", "log"))
    with pytest.raises(RankFailure):
        count(tmp_path, monkeypatch, None, failed, (3, "experience"))
    assert waited == [waits]


def test_half_an_update_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RankFailure):
        count(tmp_path, monkeypatch, None, RankFailure("counter rank 0 died"), (3, "update"))
    assert steps_of(tmp_path) == []


@pytest.mark.parametrize("trouble", [signal.SIGTERM, RankFailure("reward rank 0 died")], ids=["SIGTERM", "a dead rank"])
def test_a_test_of_what_an_update_has_left_loses_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: BaseException | int
) -> None:
    with pytest.raises((Terminated, RankFailure)):
        count(tmp_path, monkeypatch, trouble=trouble, at=(3, "evaluate"))
    assert steps_of(tmp_path) == [3]


def test_a_run_can_go_on_from_an_earlier_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count(tmp_path, monkeypatch)
    count(tmp_path, monkeypatch, 4)
    assert (tmp_path / "model").read_text() == "6" and (tmp_path / "set-aside/1/checkpoints/step-000006").is_dir()


def test_models_are_left_every_few_steps_and_set_aside_with_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", (*SETTINGS, "checkpoint.save_hf_every=2"))
    count(tmp_path, monkeypatch)
    left = {str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.glob("hf/*/*")}
    assert left == {f"hf/step-{step:06d}/model": str(step) for step in (2, 4, 6)}
    with pytest.raises(Terminated):
        count(tmp_path, monkeypatch, 4, signal.SIGTERM, (5, "update"))
    assert sorted(path.name for path in tmp_path.glob("hf/*")) == ["step-000002", "step-000004"]
    assert (tmp_path / "set-aside/1/hf/step-000006/model").read_text() == "6"


def test_a_folder_in_use_is_refused_before_a_file_of_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count(tmp_path, monkeypatch)
    with held(tmp_path):
        before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*") if file.name != "lock.json"}
        for resume in (None, "newest", 4):
            with pytest.raises(ConfigError, match=f"is in use by pid {os.getpid()}"):
                count(tmp_path, monkeypatch, resume)
        with pytest.raises(ConfigError, match="is in use"):
            check_run_dir(config_of(tmp_path), "newest")
        assert {file: file.stat().st_mtime_ns for file in before} == before
    count(tmp_path, monkeypatch, 4)


def test_a_run_whose_folder_was_taken_over_ends_without_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(run: Counting, told: StepReport) -> None:
        lock = tmp_path / "lock.json"
        if run.step == 3:
            lock.write_text(json.dumps({**json.loads(lock.read_text()), "key": "another", "host": "node-7"}))

    monkeypatch.setattr(Counting, "after_step", taken)
    with pytest.raises(TetrarchError, match=r"taken over by .* on node-7"):
        count(tmp_path, monkeypatch)
    assert steps_of(tmp_path) == []


def test_a_run_that_fails_in_an_update_completes_the_checkpoint_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step after it is lost."""
    with pytest.raises(RankFailure):
        count(tmp_path, monkeypatch, None, RankFailure("counter rank 0 died"), (5, "update"))
    assert steps_of(tmp_path) == [4]
    count(tmp_path, monkeypatch, "newest")
    assert (tmp_path / "model").read_text() == "6"
