"""Each rule on a series of steps that must fire it, and on one that must not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from orchestrator.config.alerts import AlertsConfig, GoldAlert
from orchestrator.config.kl import KlBudget
from orchestrator.metrics import METRICS
from orchestrator.report.evaluation_results import Estimate, EvaluationResult
from orchestrator.run.alert_rules import ALERT_RULES, GOLD, GUIDE, active_rules, without_gold
from orchestrator.run.alert_watch import AlertWatch
from tests.readmes import READMES, anchors

Values = Sequence[float]
CASES: dict[str, list[tuple[str, Values, int, Values]]] = {
    "kl": [("objective/kl_per_token", [0.0, 0.1, 0.21], 3, [0.0, 0.1, 0.19, 0.2])],
    "policy_update": [("policy/approx_kl", [0.01, 0.2], 2, [0.01, 0.09, math.nan])],
    "entropy": [("objective/entropy", [2.0] * 5 + [0.3, 0.39, 0.2], 8, [2.0] * 5 + [0.3, 0.3, 0.41, 0.3])],
    "explained_variance": [
        ("value/explained_variance", [-3.4, -2.6, -4.1], 3, [-3.4, -2.6, 0.1, -0.1, -0.1, 0.0]),
    ],
    "truncated": [("response/truncated_fraction", [1.0, 0.99, 1.0], 3, [1.0, 1.0, 0.98, 1.0, 1.0])],
    "truncated_rise": [
        ("response/truncated_fraction", [0.1] * 5 + [0.5, 0.6, 0.7], 8, [0.1] * 5 + [0.39, 0.39, 0.39, 0.5, 0.5]),
        ("response/truncated_fraction", [0.0] * 5 + [0.31] * 3, 8, [0.9] * 5 + [0.98] * 9),
    ],
    "length": [
        ("response/length_mean", [100.0] * 5 + [201.0] * 3, 8, [100.0] * 5 + [199.0] * 9),
        ("response/length_mean", [100.0] * 5 + [49.0] * 3, 8, [100.0] * 5 + [51.0] * 9),
    ],
    "repeated_text": [("response/repeated_fraction", [0.05] * 5 + [0.3] * 3, 8, [0.3] * 5 + [0.45] * 9)],
    "spread": [("score/flat_groups", [0.5, 0.9, 0.95, 1.0], 4, [0.5, 0.9, 0.95, 0.8, 1.0, 1.0])],
    "saturated": [("score/std", [1.0] * 5 + [0.05] * 3, 8, [1.0] * 5 + [0.11] * 9)],
    "gradient_norm": [
        ("policy/gradient_norm", [1.0, 1.2, 0.8, 1.0, 1.0, 11.0], 6, [9.0, 1.0, 1.0, 1.0, 9.0, 9.0]),
        ("value/gradient_norm", [1.0] * 5 + [11.0], 6, [100.0, 1.0, 100.0]),
        ("policy/gradient_norm", [0.0] * 6 + [1.0] * 5 + [11.0], 12, [0.0] * 9 + [0.4, 0.0, 0.3, 2.0]),
    ],
    "loss": [("value/loss", [5.0, 0.5, 0.4, 0.3, 0.4, 4.1], 6, [0.4] * 5 + [3.9, 0.4])],
    "logprob_gap": [("engine/logprob_gap_mean", [0.01, 0.06, 0.07, 0.08], 4, [0.06, 0.07, 0.02, 0.06, 0.07])],
}  # fmt: skip
"""Rule → metric, values of the steps that fire it, the step in which it does, values that do not."""


def watch(budget: KlBudget | None = None, **said: Any) -> AlertWatch:
    return AlertWatch(active_rules(AlertsConfig.model_validate(said), budget or KlBudget()))


def fired(key: str, values: Values, watching: AlertWatch | None = None) -> list[tuple[int, str]]:
    """Step and rule of the alerts of a run in which one metric has these values."""
    watching = watching or watch()
    steps = ({"policy/loss": 0.1, key: value} for value in values)
    return [(a.step, a.rule) for step, metrics in enumerate(steps, 1) for a in watching.see(step, metrics)]


def test_every_rule_is_tried_and_watches_what_is_measured() -> None:
    assert CASES.keys() == ALERT_RULES.keys()
    assert {key for rule in ALERT_RULES.values() for key in rule.metrics} <= METRICS.keys()
    assert {*ALERT_RULES, "gold", "not_finite"} == AlertsConfig.model_fields.keys() - {"rollbacks", "factor", "webhook"}


@pytest.mark.parametrize(
    ("rule", "key", "bad", "step", "fine"), [(rule, *case) for rule, cases in CASES.items() for case in cases]
)
def test_a_rule_fires_once_and_only_where_it_must(rule: str, key: str, bad: Values, step: int, fine: Values) -> None:
    assert [one for one in fired(key, [*bad, *bad[-1:] * 30]) if one[1] == rule] == [(step, rule)]
    assert rule not in {name for _, name in fired(key, fine)}
    off = watch(**{rule: None})
    assert rule not in {name for _, name in fired(key, bad, off)}


def test_the_guide_has_the_section_that_an_alert_names() -> None:
    there = anchors(READMES[GUIDE])
    assert {rule.section for rule in (*ALERT_RULES.values(), GOLD)} <= there


def test_an_alert_says_what_was_seen_what_it_means_and_what_people_do() -> None:
    watching = watch()
    for step, value in enumerate([0.4, -3.4, -2.6, -4.1], 1):
        alerts = watching.see(step, {"value/explained_variance": value, "policy/loss": 0.1})
    (alert,) = alerts
    assert str(alert) == (
        "explained_variance in step 4: value/explained_variance −4.1, below 0, for 3 steps. The critic's values are "
        "worse than one constant: it adds noise to the advantages. Train it alone at first (critic.warmup), raise "
        "critic.optimizer.learning_rate, or start it from the reward model (critic.initialise_from). See "
        "configs/illness/README.md#the-critic-is-no-help"
    )


def test_a_critic_that_is_trained_alone_is_not_complained_of() -> None:
    watching = watch()
    assert not [a for step in range(1, 9) for a in watching.see(step, {"value/explained_variance": -3.0})]


def test_steps_without_the_metric_end_no_series() -> None:
    watching, found = watch(), []
    for step, metrics in enumerate([{"score/flat_groups": 1.0}, {}, {"score/flat_groups": 1.0}] * 2, 1):
        found += [(a.step, a.rule) for a in watching.see(step, metrics)]
    assert found == [(4, "spread")]


@pytest.mark.parametrize(
    ("tokens", "key", "value"), [(50, "objective/kl_per_token", 0.21), (None, "objective/kl", 10.1)]
)
def test_the_bound_of_the_kl_is_that_of_the_budget(tokens: int | None, key: str, value: float) -> None:
    budget = KlBudget(tokens=tokens)
    assert fired(key, [value], watch(budget)) == [(1, "kl")]
    assert fired(key, [value], watch(KlBudget(tokens=tokens, warn=None))) == []
    assert fired(key, [value], watch(KlBudget(tokens=tokens, warn=11.0))) == []


def test_the_stop_of_the_budget_holds_without_alerts() -> None:
    rules = active_rules(None, KlBudget(stop=20.0))
    assert [(rule.name, rule.limit, rule.steps, rule.action) for rule in rules] == [
        ("ppo.kl.budget.stop", 0.4, 1, "stop")
    ]
    assert active_rules(None, KlBudget()) == []


def test_what_does_not_only_warn_fires_each_time() -> None:
    watching = watch(policy_update={"on_alert": "stop"})
    assert fired("policy/approx_kl", [0.2, 0.2, 0.0, 0.2], watching) == [(step, "policy_update") for step in (1, 2, 4)]


@pytest.mark.parametrize(
    ("values", "good"),
    [
        ([], 0),
        ([0.0], 0),
        ([0.0, 0.0, 0.0], 2),  # the weights of step 3 have made no batch yet
        ([0.0, 0.0, 0.0, 0.2], 2),  # those of step 3 have made the bad one of step 4
        ([0.0, 0.0, 0.0, 0.2, 0.2, 0.2], 2),
        ([0.0, 0.0, 0.0, 0.2, 0.0], 4),
        ([0.2], 0),
    ],
)
def test_the_last_good_step_is_the_one_whose_weights_made_a_good_batch(values: Values, good: int) -> None:
    watching = watch(policy_update={"on_alert": "rollback", "steps": 3})
    alerts = [a for step, value in enumerate(values, 1) for a in watching.see(step, {"policy/approx_kl": value})]
    assert watching.good() == good
    assert [alert.good for alert in alerts] == [good] * len(alerts)


def test_a_series_of_a_rule_that_only_warns_spoils_no_checkpoint() -> None:
    watching = watch(entropy={"on_alert": "rollback"})
    assert fired("policy/approx_kl", [0.2] * 4, watching) == [(1, "policy_update")]
    assert watching.good() == 3


# The gold score, which is measured in evaluations


def evaluations(*scores: tuple[float, float]) -> list[EvaluationResult]:
    """With these means of gold and proxy, 2 steps apart; prompts differ by ±0.1, and differences by half of it."""
    found = []
    for number, (gold, proxy) in enumerate(scores):
        values = [gold + 0.1 + 0.01 * (number % 2), gold - 0.1]
        estimate = Estimate.of(values)
        found.append(
            EvaluationResult(
                step=2 * number, label=f"step {2 * number}", prompts=2, proxy=Estimate(proxy, 0.1),
                gold=Estimate(gold, estimate.standard_error), kl=Estimate(1.0, 0.1), length=Estimate(9.0, 0.5),
                truncated_fraction=0.0, samples=[], proxy_values=[proxy, proxy], gold_values=values,
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("scores", "fires"),
    [
        ([(0.1, 0.0), (0.5, 1.0), (0.3, 2.0), (0.2, 3.0)], True),
        ([(0.1, 0.0), (0.5, 1.0), (0.3, 2.0)], False),  # one evaluation may be chance
        ([(0.1, 0.0), (0.5, 1.0), (0.3, 2.0), (0.6, 3.0)], False),
        ([(0.1, 0.0), (0.5, 1.0), (0.3, 0.5), (0.2, 0.4)], False),  # the proxy falls too
        ([(0.1, 0.0), (0.5, 1.0), (0.4999, 2.0), (0.4999, 3.0)], False),  # inside the error
        ([(0.1, 0.0), (0.5, 1.0), (math.nan, 2.0), (math.nan, 3.0)], False),
        ([], False),
    ],
)
def test_score_without_gold(scores: list[tuple[float, float]], fires: bool) -> None:
    assert bool(without_gold(evaluations(*scores), GoldAlert())) == fires


def test_score_without_gold_says_where_it_was_highest() -> None:
    told = without_gold(evaluations((0.1, 0.0), (0.5, 1.0), (0.3, 2.0), (0.2, 3.0)), GoldAlert())
    assert told == "the gold score fell from 0.5 at step 2 to 0.2, while the proxy score rose from 1 to 3"
