"""A run whose alerts warn, end it, or send it back: reports, checkpoints and files are real; the actor's learning rate
is a number, and the metrics are made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer import Exit

import orchestrator.stages.run
import orchestrator.stages.run_again
from cluster.errors import ClusterError, RankFailure
from cluster.ranks.identity import Identity
from cluster.runtime.orders import Orders
from orchestrator.commands.exit_codes import RULE_STOPPED, reported
from orchestrator.config.loading import load_config
from orchestrator.errors import NotFinite, StopTraining
from orchestrator.run.checkpoint import Checkpoint, Checkpoints
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume
from orchestrator.run.way_back import DIVERGED, WayBack
from orchestrator.stages.alarm import Alarm, alarm_of
from orchestrator.stages.run_again import carry_through
from orchestrator.stages.stage import Stage, StepReport
from tests.unit.orchestrator.stages.test_run import TINY, Counting

Told = Callable[[int, float], Mapping[str, float]]
"""Step and learning rate → metrics."""
GOES_BACK = "alerts.policy_update={on_alert: rollback}"


class Rate:
    """A trained group of which only the learning rate is known."""

    ranks = ()

    def __init__(self) -> None:
        self.rate = 1.0

    def call(self, method: Any, factor: float) -> Any:
        assert method.__name__ == "slow_down"
        self.rate *= factor


class Watched(Counting):
    """Counts, and heeds an alarm as PPO does."""

    def __init__(self, run_dir: Path, alarm: Alarm, told: Told, rate: Rate) -> None:
        super().__init__(run_dir, None, (0, ""))
        self.alarm, self.told, self.rate = alarm, told, rate

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "slowed": self.alarm.slowed, "rate": self.rate.rate}

    def load_state(self, checkpoint: Checkpoint) -> None:
        self.step, self.alarm.slowed = checkpoint.state["step"], checkpoint.state["slowed"]
        self.rate.rate = checkpoint.state["rate"]

    def one_step(self, clock: Clock) -> StepReport:
        self.alarm.slow_down([self.rate, None])  # type: ignore[list-item]
        metrics = self.told(self.step + 1, self.rate.rate)
        return StepReport({**super().one_step(clock).metrics, **metrics, "lr/actor": self.rate.rate})

    def after_step(self, told: StepReport) -> None:
        self.alarm.after_step(self.step, told.metrics)

    def fallback(self, steps: Any) -> Any:
        return self.alarm.fallback(steps)


class Case:
    """Runs in one folder."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir, self.starts = run_dir, 0
        monkeypatch.setattr(orchestrator.stages.run, "become_idle", lambda ranks, within_s: True)
        monkeypatch.setattr(orchestrator.stages.alarm, "wait_all", lambda calls, deadline_s: None)
        self.orders = Orders()
        for module in (orchestrator.stages.run, orchestrator.stages.run_again):
            monkeypatch.setattr(module, "ORDERS", self.orders)

    def train(self, told: Told, *overrides: str, resume: Resume = None) -> None:
        settings = [f"run_dir={self.run_dir}", "steps=8", "checkpoint={every: 1, keep: 1}", "report.html=false"]
        config = load_config(TINY, [*settings, "report.tensorboard=false", *overrides])
        back = WayBack(config)

        @contextmanager
        def start(report: Any) -> Iterator[Stage]:
            self.starts += 1
            with alarm_of(config, back, report) as alarm:
                yield Watched(self.run_dir, alarm, told, Rate())

        Watched.steps = config.steps
        carry_through(config, resume, start, back, title="Watched", steps=config.steps)

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run_dir / f"{name}.jsonl").read_text().splitlines()]

    @property
    def rates(self) -> list[float]:
        lines = self.lines("metrics")
        assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "each step is reported once"
        return [line["lr/actor"] for line in lines]

    @property
    def saved(self) -> list[int]:
        return Checkpoints(self.run_dir / "checkpoints", keep=9).steps()


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    return Case(tmp_path / "run", monkeypatch)


def bad_from(first: int, above: float) -> Told:
    """The policy changes too much from step `first` on, while the learning rate is above a bound."""
    return lambda step, rate: {"policy/approx_kl": 0.5 if step >= first and rate > above else 0.01}


def test_a_warning_is_said_once_and_recorded_and_the_run_goes_on(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.train(bad_from(3, 0.0))
    (alert,) = case.lines("alerts")
    assert (alert["step"], alert["rule"], alert["action"]) == (3, "policy_update", "warn")
    said = [line for line in capsys.readouterr().out.splitlines() if "policy_update" in line]
    assert len(said) == 1 and "warning: policy_update in step 3: policy/approx_kl 0.5, above 0.1. One step" in said[0]
    case.train(bad_from(3, 0.0), "steps=9", resume="newest")
    assert case.lines("alerts") == [alert], "nor once more when the run goes on"


def test_where_an_installed_wheel_has_the_guide_is_said_once_and_only_on_the_terminal(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Reports and trackers are others' to read: a path of the installation would name the user."""
    guide = tmp_path / "site-packages/illness/README.md"
    guide.parent.mkdir(parents=True)
    guide.touch()
    monkeypatch.setattr(orchestrator.stages.alarm, "PACKED_GUIDE", guide)
    with pytest.raises(StopTraining, match=r"See configs/illness/README\.md#the-learning-rate-is-too-high") as stopped:
        case.train(lambda step, rate: {"policy/approx_kl": 0.5, "score/flat_groups": 1.0 if step < 4 else 0.0},
            "alerts.policy_update={on_alert: stop, steps: 4}")  # fmt: skip
    assert [line["rule"] for line in case.lines("alerts")] == ["spread", "policy_update"]
    assert capsys.readouterr().out.count(f"on this machine configs/illness/README.md is {guide}") == 1
    files = [path for path in case.run_dir.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"site-packages/illness" in path.read_bytes()]
    assert "site-packages" not in str(stopped.value)


def test_a_stop_leaves_a_checkpoint_and_says_from_where_to_go_on(case: Case) -> None:
    with pytest.raises(StopTraining, match=r"policy_update in step 4(.|\n)*one of step 2 or before"):
        case.train(bad_from(4, 0.0), "alerts.policy_update={on_alert: stop}")
    assert case.saved == [4] and len(case.rates) == 4
    state = json.loads((case.run_dir / "run.json").read_text())
    assert state["status"] == "stopped" and state["error"].startswith("policy_update in step 4")
    with pytest.raises(StopTraining, match="policy_update in step 5"):
        case.train(bad_from(4, 0.0), "alerts.policy_update={on_alert: stop}", resume="newest")
    case.train(bad_from(4, 0.0), resume="newest")
    assert len(case.rates) == 8


def test_a_stop_in_the_first_steps_names_no_checkpoint_that_was_whole(case: Case) -> None:
    with pytest.raises(StopTraining, match=r"Nothing was wrong yet before step 1$"):
        case.train(bad_from(2, 0.0), "alerts.policy_update={on_alert: stop}")


def test_the_run_goes_back_to_the_last_good_checkpoint_with_a_smaller_rate(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest good one stays although `keep` is 1. The weights of step 4 have made the bad batch of step 5."""
    case.train(bad_from(5, 0.5), GOES_BACK)
    assert case.starts == 2 and case.rates == [1.0] * 3 + [0.5] * 5
    assert [line.get("healing/rollbacks") for line in case.lines("metrics")] == [None] * 3 + [1.0] + [None] * 4
    assert case.lines("alerts") == [{"step": 3, "rule": "policy_update", "at": 5, "factor": 0.5, "times": 1}]
    aside = case.run_dir / "set-aside/1"
    assert {path.name for path in (aside / "checkpoints").iterdir()} == {"step-000004"}
    assert "policy/approx_kl 0.5" in (aside / "alerts.jsonl").read_text()
    output = capsys.readouterr().out
    assert "alerts.policy_update in step 5: the run goes back to the checkpoint of step 3" in output
    assert "1 of 2 times" in output and json.loads((case.run_dir / "run.json").read_text())["status"] == "done"
    manifest = json.loads((case.run_dir / "checkpoints/step-000008/manifest.json").read_text())
    assert manifest["state"]["slowed"] == 0.5


def test_a_checkpoint_in_a_series_that_is_still_running_is_not_good(case: Case) -> None:
    """The rule fires at the third bad step; the first of them was step 4."""
    case.train(bad_from(4, 0.5), "alerts.policy_update={on_alert: rollback, steps: 3}")
    assert case.rates == [1.0] * 2 + [0.5] * 6
    assert case.lines("alerts")[0]["at"] == 6


def test_without_a_good_checkpoint_the_run_begins_anew(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.train(bad_from(2, 0.5), GOES_BACK)
    assert case.rates == [0.5] * 8 and case.lines("alerts")[0]["step"] == 0
    assert {path.name for path in (case.run_dir / "set-aside/1/checkpoints").iterdir()} == {"step-000001"}
    assert "the run goes back to its beginning" in capsys.readouterr().out


def test_it_goes_back_so_often_and_then_it_ends(case: Case) -> None:
    with pytest.raises(StopTraining, match=r"as often as alerts\.rollbacks allows"):
        case.train(bad_from(5, 0.0), GOES_BACK)
    assert case.starts == 3 and case.rates == [1.0] * 3 + [0.25] * 2
    assert [line["times"] for line in case.lines("alerts") if "times" in line] == [1, 2]
    assert case.saved[-1] == 5


def test_going_back_further_forgets_no_time_before(case: Case) -> None:
    """The first time to step 3, the second time to step 1."""

    def told(step: int, rate: float) -> dict[str, float]:
        early = rate == 0.5 and step == 4
        return {"policy/approx_kl": 0.5 if (step >= 5 and rate == 1.0) or early else 0.01}

    case.train(told, GOES_BACK, "checkpoint.keep_every=1")
    assert case.rates == [1.0] * 2 + [0.25] * 6
    assert case.lines("alerts")[-1] == {"step": 2, "rule": "policy_update", "at": 4, "factor": 0.25, "times": 2}


def test_a_later_resume_keeps_the_smaller_rate_and_the_number_of_times(case: Case) -> None:
    case.train(bad_from(5, 0.5), GOES_BACK, "checkpoint.keep_every=1")
    case.train(bad_from(5, 0.5), GOES_BACK, "checkpoint.keep_every=1", "steps=9", resume="newest")
    assert case.rates == [1.0] * 3 + [0.5] * 6
    case.train(
        bad_from(5, 0.5), GOES_BACK, "checkpoint.keep_every=1", resume=3
    )  # the checkpoint was written with the whole rate
    assert case.rates == [1.0] * 3 + [0.5] * 5 and case.starts == 4
    with pytest.raises(StopTraining, match="as often as"):
        case.train(bad_from(5, 0.0), GOES_BACK, "checkpoint.keep_every=1", "alerts.rollbacks=1", resume=3)
    case.train(bad_from(9, 0.0), resume=2)  # before the run went back
    assert case.rates == [1.0] * 8


ERRORS = {
    "a diverged actor": NotFinite("actor", "the actor's old_logprobs are not finite"),
    "engines with its weights": NotFinite("rollout", "the rollout's rollout_logprobs are not finite"),
    "a loss": RankFailure("actor rank 0 raised in update: the loss is not finite", exception=DIVERGED),
}


def raised_once(error: Exception, at: int) -> Told:
    def told(step: int, rate: float) -> dict[str, float]:
        if step == at and rate == 1.0:
            raise error
        return {}

    return told


@pytest.mark.parametrize("name", list(ERRORS))
def test_a_number_that_is_not_finite_sends_the_run_back(name: str, case: Case) -> None:
    case.train(raised_once(ERRORS[name], 5), "alerts.not_finite.on_alert=rollback")
    assert case.rates == [1.0] * 3 + [0.5] * 5
    assert [(line["rule"], line["at"]) for line in case.lines("alerts")] == [("not_finite", 5)]


@pytest.mark.parametrize(("on_alert", "action"), [("rollback", "rollback"), ("stop", "stop")])
def test_a_number_that_is_not_finite_is_sent_as_each_alert_is(
    on_alert: str, action: str, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[Any] = []
    hook = SimpleNamespace(send=sent.append, close=lambda: None)
    monkeypatch.setattr(orchestrator.stages.alarm, "Webhook", lambda *arguments: hook)
    settings = [f"alerts.not_finite.on_alert={on_alert}", "alerts.webhook.secret_url=https://example.org/hook"]
    with suppress(NotFinite):
        case.train(raised_once(ERRORS["a diverged actor"], 5), *settings)
    (alert,) = sent
    assert (alert.rule, alert.step, alert.action) == ("not_finite", 5, action)
    assert "old_logprobs are not finite" in alert.seen


def test_nan_sends_the_run_to_a_step_in_which_the_rules_found_nothing(case: Case) -> None:
    """Two of the three bad steps in a row that the rule waits for have passed."""
    raised, rule = raised_once(ERRORS["a diverged actor"], 7), "alerts.truncated={on_alert: rollback, steps: 3}"

    def told(step: int, rate: float) -> Mapping[str, float]:
        return {**raised(step, rate), "response/truncated_fraction": 1.0 if step > 4 and rate == 1.0 else 0.0}

    case.train(told, "alerts.not_finite.on_alert=rollback", rule)
    assert case.rates == [1.0] * 3 + [0.5] * 5


def test_a_diverged_reward_model_does_not_send_the_policy_back(case: Case) -> None:
    reward = Identity("reward", 0, "node", "log")
    error = RankFailure("reward rank 0 raised in update", who=reward, exception=DIVERGED)
    with pytest.raises(RankFailure, match="reward rank 0"):
        case.train(raised_once(error, 5), "alerts.not_finite.on_alert=rollback")
    assert case.starts == 1


def test_a_request_to_end_is_heard_before_the_roles_start_again(case: Case) -> None:
    def told(step: int, rate: float) -> Mapping[str, float]:
        if step == 5:  # while the update holds it back
            case.orders.told = KeyboardInterrupt
        return bad_from(5, 0.5)(step, rate)

    with pytest.raises(KeyboardInterrupt):
        case.train(told, GOES_BACK)
    assert case.starts == 1


@pytest.mark.parametrize(
    ("error", "more"),
    [
        (ERRORS["a loss"], ()),  # on_alert: stop
        (ERRORS["a diverged actor"], ("alerts=null",)),
        (ERRORS["a diverged actor"], ("alerts.not_finite.on_alert=rollback", "alerts.rollbacks=0")),
        (NotFinite("reward", "a reward is not finite"), ("alerts.not_finite.on_alert=rollback",)),
        (ClusterError("something else"), ("alerts.not_finite.on_alert=rollback",)),
    ],
)
def test_otherwise_an_error_ends_the_run(error: Exception, more: tuple[str, ...], case: Case) -> None:
    with pytest.raises(type(error), match=str(error)):
        case.train(raised_once(error, 5), *more)
    assert case.starts == 1


def test_the_end_comes_before_the_way_back(case: Case) -> None:
    told = lambda step, rate: {"policy/approx_kl": 0.5, "objective/kl_per_token": 9.0}  # noqa: E731
    with pytest.raises(StopTraining, match="kl in step 1"):
        case.train(told, GOES_BACK, "alerts.kl.on_alert=stop")
    assert [line["rule"] for line in case.lines("alerts")] == ["kl", "policy_update"], "both are told"


def test_a_rule_that_ends_a_run_has_an_exit_code_of_its_own(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as ended, reported(debug=False) as outcome:
        outcome.config = load_config(TINY, [f"run_dir={case.run_dir}"])
        case.train(bad_from(4, 0.0), "alerts.policy_update={on_alert: stop}")
    assert ended.value.exit_code == RULE_STOPPED == 4
    said = capsys.readouterr().err
    assert "error: a rule of the configuration has ended the run\n  policy_update in step 4" in said
    assert "step-000004 stands; go on from there with --resume" in said and "Traceback" not in said
