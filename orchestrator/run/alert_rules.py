"""Rules over the metrics of a PPO run: the numbers of each step flow in, what is wrong with them flows out. Pure.

A rule is one entry of `ALERT_RULES` and one section of `orchestrator.config.alerts`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from orchestrator.config.alerts import AlertsConfig, GoldAlert
from orchestrator.config.kl import KlBudget
from orchestrator.display_text import number
from orchestrator.report.evaluation_results import EvaluationResult, evaluation_changes

GUIDE = "configs/illness/README.md"
"""What to look at when the reward does not rise, with runs that show each illness."""
START, RECENT = 5, 20
"""Number of first values of a metric that later ones are compared with, and of the values before the newest one."""


@dataclass(slots=True)
class Series:
    """The finite values of a metric before the current step: the first ones and the newest ones."""

    first: list[float] = field(default_factory=list)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.recent.append(value)
            if len(self.first) < START:
                self.first.append(value)

    @property
    def start(self) -> float:
        """Mean of the first values; NaN before there are enough of them."""
        return math.fsum(self.first) / START if len(self.first) == START else math.nan

    @property
    def usual(self) -> float:
        """Median of the newest values that are not 0 (steps that had nothing to learn); NaN before there are enough."""
        known = [value for value in self.recent if value]
        return median(known) if len(known) >= START else math.nan


Judgement = Callable[[float, Series, float], str]
"""A value, those before it and the limit → what is wrong, such as `above 0.1`; empty: nothing. NaN is not wrong."""


def above(value: float, before: Series, limit: float) -> str:
    return f"above {number(limit)}" if value > limit else ""


def at_least(value: float, before: Series, limit: float) -> str:
    return f"at least {number(limit)}" if value >= limit else ""


def below(value: float, before: Series, limit: float) -> str:
    return f"below {number(limit)}" if value < limit else ""


def risen(value: float, before: Series, limit: float) -> str:
    told = f"more than {number(limit)} above the mean of the first {START} steps ({number(before.start)})"
    return told if value > before.start + limit else ""


def fallen(value: float, before: Series, limit: float) -> str:
    told = f"below {number(limit)} times the mean of the first {START} steps ({number(before.start)})"
    return told if value < before.start * limit else ""


def drifted(value: float, before: Series, limit: float) -> str:
    far = value > before.start * limit or value < before.start / limit
    return f"more than a factor of {number(limit)} from the first {START} steps ({number(before.start)})" if far else ""


def jumped(value: float, before: Series, limit: float) -> str:
    told = f"above {number(limit)} times the median of the steps before ({number(before.usual)})"
    return told if value > before.usual * limit else ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is watched, what it means when it is bad, and what people do about it."""

    metrics: tuple[str, ...]
    """Any of them may be bad; in a step without all of them the rule says nothing."""
    judge: Judgement
    means: str
    advice: str
    section: str
    """Of the guide, which shows such a run and what to look at."""
    needs: str = ""
    """A metric of the steps that count; empty: all do."""

    @property
    def told(self) -> str:
        """What people are told beside the numbers."""
        return f"{self.means} {self.advice} See {GUIDE}#{self.section}"


ALERT_RULES: dict[str, Rule] = {
    "kl": Rule(
        ("objective/kl",),
        above,
        "The policy is far from the reference, where the reward model has seen nothing like its responses.",
        "Raise ppo.kl.controller.coefficient, or lower actor.optimizer.learning_rate; read some samples.",
        "the-policy-runs-away",
    ),
    "policy_update": Rule(
        ("policy/approx_kl",),
        above,
        "One step changed the policy by so much that its samples hardly say anything about the new one.",
        "Lower actor.optimizer.learning_rate or ppo.epochs, or raise the number of samples of a step.",
        "the-learning-rate-is-too-high",
    ),
    "entropy": Rule(
        ("objective/entropy",),
        fallen,
        "The policy says nearly the same every time, and stops exploring.",
        "Raise ppo.kl.controller.coefficient or ppo.policy.entropy_coefficient, or lower the actor's learning rate.",
        "the-policy-runs-away",
    ),
    "explained_variance": Rule(
        ("value/explained_variance",),
        below,
        "The critic's values are worse than one constant: it adds noise to the advantages.",
        "Train it alone at first (critic.warmup), raise critic.optimizer.learning_rate, or start it from the reward "
        "model (critic.initialise_from).",
        "the-critic-is-no-help",
        needs="policy/loss",
    ),
    "truncated": Rule(
        ("response/truncated_fraction",),
        at_least,
        "Almost no response ends by itself: scores are those of beginnings.",
        "Raise rollout.max_response_tokens; look whether the prompts' chat template and the end token are right.",
        "responses-are-cut",
    ),
    "truncated_rise": Rule(
        ("response/truncated_fraction",),
        risen,
        "Longer and longer responses run into the limit; perhaps the reward pays for length.",
        "Set ppo.truncated to a penalty, charge for length (ppo.score.length), or raise rollout.max_response_tokens.",
        "responses-are-cut",
    ),
    "length": Rule(
        ("response/length_mean",),
        drifted,
        "The length of the responses drifts; perhaps the reward pays for it.",
        "Compare scores of short and long responses; charge for length (ppo.score.length).",
        "responses-are-cut",
    ),
    "repeated_text": Rule(
        ("response/repeated_fraction",),
        risen,
        "The responses repeat themselves: a reward model that never saw that is being exploited.",
        "Read some samples; raise ppo.kl.controller.coefficient, or train the reward model on such responses "
        "(retraining).",
        "the-reward-is-hacked",
    ),
    "spread": Rule(
        ("score/flat_groups",),
        at_least,
        "Nearly all responses to the same prompt get the same score: comparing them teaches nothing.",
        "Choose harder or easier prompts, a reward with more steps, or more rollout.responses_per_prompt.",
        "the-scores-have-no-spread",
    ),
    "saturated": Rule(
        ("score/std",),
        fallen,
        "All responses get nearly the same score: the reward has reached its end, and only noise is left to learn.",
        "End the run, or choose harder prompts or another reward.",
        "the-scores-have-no-spread",
    ),
    "gradient_norm": Rule(
        ("policy/gradient_norm", "value/gradient_norm"),
        jumped,
        "A batch pulls far harder than those before it, or the model is diverging.",
        "Look at the samples of this step; lower the learning rate or optimizer.max_gradient_norm.",
        "the-learning-rate-is-too-high",
    ),
    "loss": Rule(
        ("value/loss",),
        jumped,
        "The critic misses the returns by far more than before: scores have jumped, or it is diverging.",
        "Look at score/mean of this step; lower critic.optimizer.learning_rate, or set ppo.value.normalise.",
        "the-learning-rate-is-too-high",
    ),
    "logprob_gap": Rule(
        ("engine/logprob_gap_mean",),
        above,
        "The engines sample from another distribution than the one that is trained.",
        "Compute in float32, or correct for it (ppo.policy.importance).",
        "the-samples-are-not-the-policys",
    ),
}
"""Name of the section in `alerts` → rule. `gold` looks at evaluations (`without_gold`); what is not finite is an error
of the step."""
GOLD = Rule(
    (),
    above,
    "Training raises the proxy score at the cost of what the judge finds good (over-optimisation).",
    "End here and take the best models (evaluation.stop), raise ppo.kl.controller.coefficient, or retrain the reward "
    "model (retraining).",
    "the-reward-is-hacked",
)


@dataclass(frozen=True, slots=True)
class ActiveRule:
    """A rule as the configuration has it."""

    name: str
    rule: Rule
    limit: float
    steps: int
    action: str

    def seen(self, metrics: Mapping[str, float], before: Mapping[str, Series]) -> str | None:
        """What is bad in a step, such as `policy/approx_kl 0.31, above 0.1`; empty: nothing; None: not measured."""
        keys = [key for key in self.rule.metrics if key in metrics]
        if not keys or (self.rule.needs and self.rule.needs not in metrics):
            return None
        said = ((key, self.rule.judge(metrics[key], before[key], self.limit)) for key in keys)
        return "; ".join(f"{key} {number(metrics[key])}, {wrong}" for key, wrong in said if wrong)


def active_rules(alerts: AlertsConfig | None, budget: KlBudget) -> list[ActiveRule]:
    """The rules that are on. The bound of the rule `kl` is that of `ppo.kl.budget`, scaled to the responses' length."""
    key, per = ("objective/kl", 1) if budget.tokens is None else ("objective/kl_per_token", budget.tokens)
    kl = replace(ALERT_RULES["kl"], metrics=(key,))
    found = []
    if budget.stop is not None:
        found.append(ActiveRule("ppo.kl.budget.stop", kl, budget.stop / per, 1, "stop"))
    if alerts is None:
        return found
    for name, rule in ALERT_RULES.items():
        said = getattr(alerts, name)
        if name == "kl" and said is not None and budget.warn is not None:
            found.append(ActiveRule(name, kl, budget.warn / per, said.steps, said.on_alert))
        elif name != "kl" and said is not None:
            found.append(ActiveRule(name, rule, said.limit, said.steps, said.on_alert))
    return found


def without_gold(evaluations: Sequence[EvaluationResult], settings: GoldAlert) -> str:
    """What is bad in the newest evaluations; empty: nothing. Differences of scores are taken prompt by prompt."""
    judged = [(result, result.gold.mean) for result in evaluations if result.gold and math.isfinite(result.gold.mean)]
    if not judged:
        return ""
    best, highest = max(judged, key=lambda one: one[1])
    newest = [result for result, _ in judged if result.step > best.step][-settings.evaluations :]
    if len(newest) < settings.evaluations or not all(_worse(best, result, settings.limit) for result in newest):
        return ""
    last = newest[-1]
    assert last.gold is not None
    return (
        f"the gold score fell from {number(highest)} at step {best.step} to {number(last.gold.mean)}, while the proxy "
        f"score rose from {number(best.proxy.mean)} to {number(last.proxy.mean)}"
    )


def _worse(best: EvaluationResult, result: EvaluationResult, errors: float) -> bool:
    gold = evaluation_changes(best, result)[0].difference
    return result.proxy.mean > best.proxy.mean and gold.mean < -errors * gold.standard_error
