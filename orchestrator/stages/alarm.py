"""The alerts of a PPO run: the metrics of each step flow in; warnings, the end of the run, or a way back flow out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cluster.ranks.calls import wait_all
from cluster.ranks.role_group import RoleGroup
from orchestrator.config.run import RunConfig
from orchestrator.errors import RollBack, StopTraining
from orchestrator.report.alert_lines import Alert
from orchestrator.report.evaluation_results import EvaluationResult
from orchestrator.report.reporter import Reporter
from orchestrator.run.alert_rules import GOLD, GUIDE, active_rules, without_gold
from orchestrator.run.alert_watch import AlertWatch
from orchestrator.run.way_back import WayBack
from orchestrator.run.webhook import Webhook
from roles.zero.trained_rank import TrainedRank

PACKED_GUIDE = Path(__file__).parents[1] / "illness" / Path(GUIDE).name
"""Where a wheel, which brings no `configs`, has brought the guide."""


@dataclass(slots=True)
class Alarm:
    """Watches the steps and evaluations of a run."""

    config: RunConfig
    back: WayBack
    sinks: Sequence[Callable[[Alert], None]]
    """Who is told of an alert: the report, which tells terminal and trackers, and the webhook."""
    slowed: float = 1.0
    """What the learning rates of the trained groups are multiplied by now."""
    watch: AlertWatch = field(init=False)

    def __post_init__(self) -> None:
        self.watch = AlertWatch(active_rules(self.config.alerts, self.config.ppo.kl.budget))

    def recall(self, report: Reporter) -> None:
        """Take up the steps and alerts of a run that goes on."""
        for step, metrics in report.metrics():
            self.watch.see(step, metrics)
        self.watch.told = {line["rule"] for line in report.alerts() if "seen" in line}
        self.back.good = self.watch.good()
        self.back.recall(report)

    def after_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Tell the alerts of a step; StopTraining or RollBack if one of them says so, the end before the way back."""
        found = self.watch.see(step, metrics)
        self.back.good = self.watch.good()
        for alert in found:
            self._tell(alert)
        for alert in sorted((one for one in found if one.action != "warn"), key=lambda one: one.action != "stop"):
            if alert.action == "rollback" and self.back.is_left:
                raise RollBack(str(alert), alert.rule, alert.step, alert.good)
            spent = " It has gone back as often as alerts.rollbacks allows." if alert.action == "rollback" else ""
            whole = f"in one of step {alert.good} or before (--resume-from STEP)" if alert.good else "before step 1"
            raise StopTraining(f"{alert}{spent}\nA checkpoint is saved. Nothing was wrong yet {whole}")

    def after_evaluation(self, evaluations: Sequence[EvaluationResult]) -> None:
        """Tell, once, that the proxy score rises without the gold score."""
        settings = self.config.alerts.gold if self.config.alerts else None
        seen = without_gold(evaluations, settings) if settings and "gold" not in self.watch.told else ""
        if seen:
            self.watch.told.add("gold")
            self._tell(Alert(evaluations[-1].step, "gold", "warn", seen, GOLD.told))

    def after_error(self, error: Exception) -> None:
        """Tell of a number that is not finite, with which the run ends or goes back."""
        if (alert := self.back.alert(error)) is not None:
            self._tell(alert)

    def slow_down(self, groups: Sequence[RoleGroup[Any] | None]) -> None:
        """Multiply the learning rates of `groups` as the way back says, if they are not yet; None: there is no such
        group."""
        ratio = self.back.factor / self.slowed
        if ratio < 1.0:
            there = [group for group in groups if group is not None]
            wait_all([group.call(TrainedRank.slow_down, ratio) for group in there], self.config.deadlines.update_s)
            self.slowed = self.back.factor

    def fallback(self, steps: Sequence[int]) -> list[int]:
        """The newest of the steps that are known to be good; none if no alert sends the run back."""
        alerts = self.config.alerts
        goes_back = alerts is not None and "rollback" in (
            alerts.not_finite.on_alert, *(rule.action for rule in self.watch.rules)
        )  # fmt: skip
        return sorted(step for step in steps if step <= self.watch.good())[-1:] if goes_back else []

    def _tell(self, alert: Alert) -> None:
        for sink in self.sinks:
            sink(alert)


@contextmanager
def alarm_of(config: RunConfig, back: WayBack, report: Reporter) -> Iterator[Alarm]:
    """Context with the alarm of a run; at its end alerts under way are sent."""
    settings = config.alerts.webhook if config.alerts else None
    webhook = Webhook(settings, Path(config.run_dir).name, report.note) if settings else None
    sinks = [report.alert, *([webhook.send] if webhook else [])]
    if PACKED_GUIDE.is_file():  # on the terminal alone: alerts are sent to others, and must not name a home folder
        once = cache(report.note)
        sinks.append(lambda alert: once(f"on this machine {GUIDE} is {PACKED_GUIDE}"))
    alarm = Alarm(config, back, sinks)
    alarm.recall(report)
    try:
        yield alarm
    except Exception as error:
        alarm.after_error(error)
        raise
    finally:
        if webhook:
            webhook.close()
