"""A PPO run with `evaluation.stop` on made-up gold scores: which models it leaves, whatever kills it in between.

Reports, checkpoints and folders are real; the actor's weights are the number of its updates.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator.stages.ppo
import orchestrator.stages.run
from cluster.ranks.calls import Call
from cluster.ranks.usage import Usage
from cluster.runtime.orders import Orders
from orchestrator.config.loading import load_config
from orchestrator.ppo.kl import FixedController
from orchestrator.ppo.state import TrainState
from orchestrator.report.evaluation_results import Estimate, EvaluationResult
from orchestrator.report.run_files import read_record
from orchestrator.run.checkpoint import Checkpoints, trained_step
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume
from orchestrator.run.way_back import WayBack
from orchestrator.stages.alarm import Alarm
from orchestrator.stages.best_models import BestModels
from orchestrator.stages.ppo import Ppo
from orchestrator.stages.run import carry_out
from orchestrator.stages.stage import Stage, StepReport
from roles.zero.digest import VERSION
from tests.unit.orchestrator.fakes import prompts_of
from tests.unit.orchestrator.stages.test_run import Answer

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"
RISES_AND_FALLS = {0: 0.1, 2: 0.4, 4: 0.5, 6: 0.3, 8: 0.2, 10: 0.1}


class Killed(BaseException):
    """As by SIGKILL: nothing is saved."""


class Weights:
    """A group whose weights are a number."""

    ranks = ()
    updates = 0

    def call(self, method: Any, folder: str = "", *more: Any) -> Any:
        path = Path(folder)
        if method.__name__ == "begin_saving":
            self.copy, self.asked = (path, self.updates), 0
        elif method.__name__ == "written":
            self.asked += 1
            if self.asked == 3:
                self.copy[0].write_text(str(self.copy[1]))
            return Answer([{} if self.asked == 3 else None])
        elif method.__name__ == "load_state":
            self.updates = int(path.read_text())
        elif method.__name__ == "save_state":
            path.write_text(str(self.updates))
        else:
            path.mkdir(parents=True)
            (path / "weights").write_text(str(self.updates))
        return Call(method.__name__, [], [], [])


class Source:
    def __len__(self) -> int:
        return 1

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Case:
    """Runs in one folder, which may be killed."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir = run_dir
        self.gold: Mapping[int, float] = RISES_AND_FALLS
        self.killed_at = ""
        """`step N`: after that step; `evaluation N`: before there is a result; `keeping N`: while models are kept."""
        monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: True)
        monkeypatch.setattr(orchestrator.stages.run, "ORDERS", Orders())
        monkeypatch.setattr(orchestrator.stages.ppo, "reference_fingerprint", lambda roles: f"{VERSION}-0")
        monkeypatch.setattr(orchestrator.stages.ppo, "evaluate", self.measured)
        monkeypatch.setattr(Ppo, "one_step", lambda ppo, clock: self.one_step(ppo, clock))
        monkeypatch.setattr(Ppo, "after_step", lambda ppo, told: self.maybe_killed(f"step {ppo.step}"))
        keep = Ppo.keep_models
        monkeypatch.setattr(Ppo, "keep_models", lambda ppo: (self.maybe_killed(f"keeping {ppo.step}"), keep(ppo)))

    def train(self, *overrides: str, resume: Resume = None) -> None:
        settings = [
            f"run_dir={self.run_dir}",
            "steps=10",
            "evaluation={every: 2, judge: {path: judge.py}, stop: {patience: 2}}",
            "checkpoint={every: 3, keep: 9}",
            "report={html: false, tensorboard: false}",
            *overrides,
        ]
        config = load_config(TINY, settings)

        @contextmanager
        def start(report: Any) -> Iterator[Stage]:
            policy = SimpleNamespace(load=lambda *a, **k: None, rest=lambda: None, end=lambda: None)
            cluster = SimpleNamespace(usage=lambda: Usage([], 1.0, []))
            groups: Any = {"actor": Weights(), "critic": Weights()}
            roles: Any = SimpleNamespace(policy=policy, cluster=cluster, **groups)
            state = TrainState(Source(), FixedController(0.1))  # type: ignore[arg-type]
            gold = BestModels(config.evaluation.stop, self.run_dir) if config.evaluation.stop else None
            alarm = Alarm(config, WayBack(config), [])
            yield Ppo(config, roles, state, report, {"": prompts_of(2)}, f"{VERSION}-0", alarm, gold=gold)

        carry_out(config, resume, start, title="PPO", steps=config.steps)

    def killed(self, at: str, *overrides: str, resume: Resume = None) -> None:
        self.killed_at = at
        with pytest.raises(Killed):
            self.train(*overrides, resume=resume)
        self.killed_at = ""

    def maybe_killed(self, here: str) -> None:
        if here == self.killed_at:
            raise Killed

    def one_step(self, ppo: Ppo, clock: Clock) -> StepReport:
        for group in (ppo.roles.actor, ppo.roles.critic):
            group.updates += 1  # type: ignore[union-attr]
        ppo.state.step += 1
        return StepReport({"objective/kl": 1.0})

    def measured(self, roles: Any, prompts: Any, version: int, *, step: int, label: str, **_: Any) -> EvaluationResult:
        self.maybe_killed(f"evaluation {step}")
        gold, proxy = self.gold[step], float(step)  # the proxy rises all the time
        kl = Estimate(float(step), 0.1)
        return EvaluationResult(
            step, label, 2, Estimate(proxy, 0.1), Estimate(gold, 0.1), kl, kl, 0.0, [], [proxy] * 2, [gold] * 2
        )

    def left(self) -> tuple[str, str, int]:
        """Weights of the actor and of the critic that the run has left, and the step that the actor's folder says."""
        actor, critic = self.run_dir / "actor", self.run_dir / "critic"
        step = json.loads((actor / "tetrarch.json").read_text())["step"]
        assert not (self.run_dir / "best").exists()
        return (actor / "weights").read_text(), (critic / "weights").read_text(), step

    def evaluated(self) -> list[int]:
        return [json.loads(line)["step"] for line in (self.run_dir / "evaluation.jsonl").read_text().splitlines()]

    def checkpoints(self) -> list[int]:
        return Checkpoints(self.run_dir / "checkpoints", keep=9).steps()

    @property
    def kept(self) -> int | None:
        """The step of the models that are kept while the run goes on."""
        return trained_step(self.run_dir / "best")


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path / "run", monkeypatch)


def test_the_run_ends_soon_after_the_peak_and_leaves_the_best_models(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.train("report.html=true")
    assert case.evaluated() == [0, 2, 4, 6, 8]
    assert case.left() == ("4", "4", 4), "the proxy is highest at step 8"
    shown = capsys.readouterr().out
    assert "highest at step 4 (+0.500), and patience=2 is spent" in shown and "the models of step 4" in shown
    state = read_record(case.run_dir).state
    assert (state.status, state.best, state.ended[:15]) == ("done", 4, "evaluation.stop")
    page = (case.run_dir / "report.html").read_text()
    assert "ended early, 8 of 10 steps" in page and "of step 4, the best gold score" in page
    assert "training ends after step 8" in page.split("<section>")[0]
    assert case.checkpoints() == [2, 3, 4, 6, 8], "one for each new best, and one at the end"


def test_without_the_key_the_last_models_are_left(case: Case) -> None:
    case.train("evaluation.stop=null")
    assert case.evaluated() == [0, 2, 4, 6, 8, 10] and case.left() == ("10", "10", 10)
    assert read_record(case.run_dir).state.best is None


@pytest.mark.parametrize(
    ("gold", "patience", "evaluated", "left"),
    [
        (RISES_AND_FALLS, "null", [0, 2, 4, 6, 8, 10], 4),
        (RISES_AND_FALLS, "1", [0, 2, 4, 6], 4),
        ({step: -step for step in range(11)}, "2", [0, 2, 4], 0),
        ({step: step for step in range(11)}, "1", [0, 2, 4, 6, 8, 10], 10),
        ({**RISES_AND_FALLS, 10: 0.9}, "null", [0, 2, 4, 6, 8, 10], 10),
        ({**RISES_AND_FALLS, 8: 0.6}, "2", [0, 2, 4, 6, 8, 10], 8),
        (dict.fromkeys(range(11), math.nan), "1", [0, 2, 4, 6, 8, 10], 10),
    ],
)
def test_which_models_are_left(
    case: Case, gold: dict[int, float], patience: str, evaluated: list[int], left: int
) -> None:
    case.gold = gold
    case.train(f"evaluation.stop.patience={patience}")
    assert (case.evaluated(), case.left()) == (evaluated, (str(left), str(left), left))


KILLS = ("step 3", "evaluation 4", "keeping 4", "step 5", "step 6", "evaluation 6", "step 7", "evaluation 8")


@pytest.mark.parametrize("at", KILLS)
def test_a_run_that_was_killed_ends_as_one_that_was_not(case: Case, at: str) -> None:
    case.killed(at)
    assert case.kept in (2, 4), "the best is on the disk all the time"
    case.train(resume="newest")
    assert (case.evaluated(), case.left()) == ([0, 2, 4, 6, 8], ("4", "4", 4))


def test_killed_while_the_best_models_are_moved(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def killed(path: Path, target: Path) -> Any:
        if path.parent.name == "best" and path.name == "actor" and target.parent != path.parent:
            raise Killed
        return rename(path, target)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(
            Path,
            "rename",
            lambda path, target: killed(path, target) if ".partial" not in path.name else rename(path, target),
        )
        case.train()
    assert (case.run_dir / "critic").exists() and case.kept == 4
    case.train(resume="newest")
    assert case.left() == ("4", "4", 4)


def test_a_stopped_run_goes_on_with_more_patience(case: Case) -> None:
    case.train()
    case.train(resume="newest")
    assert (case.evaluated(), case.left()) == ([0, 2, 4, 6, 8], ("4", "4", 4)), "the same patience is spent"
    case.gold = {**RISES_AND_FALLS, 10: 0.7}
    case.train("evaluation.stop.patience=3", resume="newest")
    assert (case.evaluated(), case.left()) == ([0, 2, 4, 6, 8, 10], ("10", "10", 10))


def test_from_before_the_best_only_models_that_exist_count(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """The models of step 2, the best before step 3, are gone: those of step 4 have replaced them."""
    case.train()
    case.gold = {**RISES_AND_FALLS, 4: 0.3, 6: 0.35, 8: 0.2}
    case.train("evaluation.stop.patience=null", resume=3)
    assert "evaluations before step 3 do not count" in capsys.readouterr().out
    assert case.left() == ("6", "6", 6)
    assert json.loads((case.run_dir / "set-aside/1/actor/tetrarch.json").read_text()) == {"step": 4}


def test_kept_models_of_a_future_that_was_left_are_set_aside(case: Case) -> None:
    case.killed("step 5")
    case.train(resume=3)
    assert trained_step(case.run_dir / "set-aside/1/best") == 4
    assert case.left() == ("4", "4", 4)


def test_the_best_checkpoints_stay_beside_the_newest(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps 2, 4 and 6 have the best gold scores; the proxy rises to step 10. Step 2 had no checkpoint otherwise."""
    case.train("evaluation.stop=null", "checkpoint={every: 5, keep: 1, keep_best: 2}")
    assert case.checkpoints() == [2, 4, 10]
    assert "the newest 1 are kept, and the best 2 by their evaluation" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["evaluation 4", "step 5", "step 6", "evaluation 6"])
def test_the_best_checkpoints_stay_through_a_kill_too(case: Case, at: str) -> None:
    settings = ("evaluation.stop=null", "checkpoint={every: 2, keep: 1, keep_best: 2}")
    case.killed(at, *settings)
    case.train(*settings, resume="newest")
    assert case.checkpoints() == [2, 4, 10]


def test_only_evaluations_count_that_have_a_checkpoint(case: Case) -> None:
    """`keep_best` is set after the best steps are gone."""
    settings = ("evaluation.stop=null", "checkpoint={every: 2, keep: 1}")
    case.killed("step 7", *settings)
    case.train(*settings, "checkpoint.keep_best=2", resume="newest")
    assert case.checkpoints() == [6, 8, 10]


@pytest.mark.parametrize("at", ["", "evaluation 4", "step 5", "keeping 4"])
def test_with_checkpoints_that_are_written_meanwhile_nothing_else_is_left(
    case: Case, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    keep = Ppo.keep_models

    def kept(ppo: Ppo) -> None:
        assert ppo.step in (0, *case.checkpoints()), "the checkpoint comes first"
        keep(ppo)

    monkeypatch.setattr(Ppo, "keep_models", kept)
    if at:
        case.killed(at, "checkpoint.asynchronous=true")
    case.train("checkpoint.asynchronous=true", resume="newest" if at else None)
    assert (case.evaluated(), case.left()) == ([0, 2, 4, 6, 8], ("4", "4", 4))
    assert case.checkpoints()[-1] == 8
