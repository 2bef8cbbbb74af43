"""When the rules of a run fire: the metrics of each step flow in, alerts flow out; which steps were still good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.report.alert_lines import Alert
from orchestrator.run.alert_rules import ActiveRule, Series


@dataclass(slots=True)
class AlertWatch:
    """The rules of a run, and what they have seen so far."""

    rules: Sequence[ActiveRule]
    told: set[str] = field(default_factory=set)
    """Rules that have fired. Those that only warn do not fire again."""
    _series: dict[str, Series] = field(default_factory=dict)
    _bad: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Rule → the first step of those that were bad in a row until now, and their number."""
    _step: int = 0

    def __post_init__(self) -> None:
        self._series = {key: Series() for rule in self.rules for key in rule.rule.metrics}

    def see(self, step: int, metrics: Mapping[str, float]) -> list[Alert]:
        """The alerts of a step; every step must be seen, in their order."""
        found = []
        for rule in self.rules:
            seen = rule.seen(metrics, self._series)
            if seen == "":
                self._bad.pop(rule.name, None)
            elif seen is not None:
                since, count = self._bad.get(rule.name, (step, 0))
                self._bad[rule.name] = (since, count + 1)
                if count + 1 >= rule.steps:
                    found.append((rule, seen, count + 1))
        for key, series in self._series.items():
            if key in metrics:
                series.add(metrics[key])
        self._step = step
        fired = [one for one in found if one[0].action != "warn" or one[0].name not in self.told]
        self.told |= {rule.name for rule, _, _ in fired}
        return [self._alert(step, *one) for one in fired]

    def _alert(self, step: int, rule: ActiveRule, seen: str, count: int) -> Alert:
        seen = seen if count == 1 else f"{seen}, for {count} steps"
        good = self.good(rule.name)
        return Alert(step, rule.name, rule.action, seen, rule.rule.told, good)

    def good(self, but: str = "") -> int:
        """The last step whose weights have made a batch in which no rule that goes back saw anything bad, nor the rule
        `but`; 0: those before the first step.

        The weights of step n make the samples of step n + 1, so that a series that is bad from step b on says that the
        weights of step b - 1 are bad: those of b - 2 are the last good ones.
        """
        back = {but, *(rule.name for rule in self.rules if rule.action == "rollback")}
        begun = [since for name, (since, _) in self._bad.items() if name in back]
        return max(min([self._step + 1, *begun]) - 2, 0)
