"""Results of an evaluation, and the difference between two evaluations. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    standard_error: float
    """s/√n with n-1 in the variance's denominator; NaN for a single value."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Mean and standard error of independent values; both NaN for none, the error NaN for one."""
        n = len(values)
        if n == 0:
            return cls(math.nan, math.nan)
        mean = math.fsum(values) / n
        if n == 1:
            return cls(mean, math.nan)
        variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
        return cls(mean, math.sqrt(variance / n))

    @property
    def z(self) -> float:
        """The mean in units of its standard error; NaN if that is 0 or unknown."""
        return self.mean / self.standard_error if self.standard_error > 0 else math.nan


NORMAL_95 = 1.959964
"""Standard deviations of the normal distribution on each side of the middle 95 %."""


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """The 95 % interval of a probability of which `share` was seen in `count` independent trials, inside 0 and 1 and
    never a point: Wilson's score interval (J. Am. Stat. Assoc. 22, 1927, p. 209).

    Example: `wilson_interval(1.0, 32)` is (0.893, 1.0).
    """
    shrunk = NORMAL_95**2 / count
    middle = (share + shrunk / 2) / (1 + shrunk)
    half = math.sqrt(shrunk * (share * (1 - share) + shrunk / 4)) / (1 + shrunk)
    return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One response, as the reports show it."""

    prompt: str
    response: str
    proxy: float
    """Score of the reward model or reward function."""
    gold: float | None
    """Score of the judge; None without a judge."""
    kl: float
    """KL from the reference in nats, summed over the response; NaN if it was not measured."""
    finished: bool
    """False if the length limit cut the response."""
    messages: list[dict[str, str]] = field(default_factory=list)
    """The prompt as `role` and `content` of each message; empty if it is no chat."""
    talk: list[dict[str, str]] = field(default_factory=list)
    """What followed in a conversation with an environment; empty without one."""


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """Results of one pass over the held-out prompts."""

    step: int
    """Number of steps done."""
    label: str
    """`before`, `after` or `step N`."""
    prompts: int
    proxy: Estimate
    gold: Estimate | None
    kl: Estimate | None
    """KL in nats per response; None if the responses were not sampled as in training."""
    length: Estimate
    """Number of generated tokens."""
    truncated_fraction: float
    samples: list[SampleRow]
    proxy_values: list[float]
    """Score of each prompt, in the prompts' order, so that two evaluations can be paired."""
    gold_values: list[float] | None = None
    undecided: int = 0
    """Comparisons of a win rate that the judge has not decided; each counts as one half."""
    passed: dict[str, Estimate] = field(default_factory=dict)
    """k → pass@k; empty unless `evaluation.passes` says when a response passes."""
    by: dict[str, Estimate] = field(default_factory=dict)
    """Value of the column `evaluation.by` → the score (gold, if there is a judge) of the prompts that have it."""
    name: str = ""
    """Name of the set of held-out prompts; empty: `prompts.heldout`."""
    decides: bool = True
    """Whether the score of this set compares the steps of a run."""

    @property
    def measures(self) -> dict[str, Estimate]:
        """Gold score, proxy score, KL and length, as far as they were measured: `{"proxy": …, "length": …}`."""
        found = {"gold": self.gold, "proxy": self.proxy, "kl": self.kl, "length": self.length}
        return {key: estimate for key, estimate in found.items() if estimate is not None}

    @property
    def score(self) -> float:
        """By which evaluations of a run are compared: the mean gold score, without a judge the mean proxy score."""
        return (self.proxy if self.gold is None else self.gold).mean

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and lists; the inverse of `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Read what `to_json` wrote; `null` numbers (JSON has no NaN) become NaN."""
        gold, gold_values, kl = data["gold"], data["gold_values"], data["kl"]
        return cls(
            step=data["step"],
            label=data["label"],
            prompts=data["prompts"],
            proxy=_estimate(data["proxy"]),
            gold=None if gold is None else _estimate(gold),
            kl=None if kl is None else _estimate(kl),
            length=_estimate(data["length"]),
            truncated_fraction=_number(data["truncated_fraction"]),
            samples=[sample_from_json(row, judged=gold is not None) for row in data["samples"]],
            proxy_values=[_number(value) for value in data["proxy_values"]],
            gold_values=None if gold_values is None else [_number(value) for value in gold_values],
            undecided=data.get("undecided", 0),  # older runs have none
            name=data.get("name", ""),
            decides=data.get("decides", True),
            **{part: {k: _estimate(one) for k, one in data.get(part, {}).items()} for part in ("passed", "by")},
        )


def evaluation_metrics(result: EvaluationResult) -> dict[str, float]:
    """The means of an evaluation by the names that trackers plot: `evaluation/proxy` of the set that compares the
    steps, `evaluation/NAME/proxy` of a set with a name."""
    places = [*(["evaluation"] if result.decides else []), *([f"evaluation/{result.name}"] if result.name else [])]
    places = places or ["evaluation/heldout"]
    return {f"{place}/{key}": one.mean for place in places for key, one in result.measures.items()}


def sample_from_json(row: dict[str, Any], judged: bool) -> SampleRow:
    """Read a sample of `samples.jsonl` or of an evaluation. `judged`: a gold score `null` is NaN, not a missing
    judge."""
    gold = _number(row["gold"]) if judged or row["gold"] is not None else None
    return SampleRow(
        *(row["prompt"], row["response"], _number(row["proxy"]), gold, _number(row["kl"]), bool(row["finished"])),
        *(row.get(name, []) for name in ("messages", "talk")),  # older runs have none
    )


@dataclass(frozen=True, slots=True)
class EvaluationChange:
    """One measure in two evaluations."""

    name: str
    unit: str
    before: Estimate
    after: Estimate
    difference: Estimate
    paired: bool
    """Whether the difference was taken prompt by prompt, which has a smaller error than comparing two means."""


def same_prompts(before: EvaluationResult, after: EvaluationResult) -> bool:
    """Whether both have answered the same prompts, as far as they tell: the name of the set, the number of prompts, and
    those that both show."""
    if (before.name, before.prompts) != (after.name, after.prompts):
        return False
    return all(_asked(one) == _asked(other) for one, other in zip(before.samples, after.samples, strict=False))


def _asked(sample: SampleRow) -> Any:
    """A chat as it was given, since templates of several models write it in several ways."""
    return sample.messages or sample.prompt


def evaluation_changes(before: EvaluationResult, after: EvaluationResult) -> list[EvaluationChange]:
    """Gold score (if both have one), proxy score, KL and length, in the order in which they matter. Scores are compared
    prompt by prompt if both have answered the same ones."""
    found, paired = [], same_prompts(before, after)
    if before.gold is not None and after.gold is not None:
        values = (before.gold_values, after.gold_values) if paired else (None, None)
        found.append(_change("gold score", "", before.gold, after.gold, *values))
    values = (before.proxy_values, after.proxy_values) if paired else (None, None)
    found.append(_change("proxy score", "", before.proxy, after.proxy, *values))
    for k in [k for k in after.passed if k in before.passed]:
        found.append(_change(f"pass@{k}", "", before.passed[k], after.passed[k], None, None))
    if before.kl is not None and after.kl is not None:
        found.append(_change("KL to the reference", "nats", before.kl, after.kl, None, None))
    found.append(_change("response length", "tokens", before.length, after.length, None, None))
    return found


def _change(
    name: str,
    unit: str,
    before: Estimate,
    after: Estimate,
    before_values: list[float] | None,
    after_values: list[float] | None,
) -> EvaluationChange:
    if before_values and after_values and len(before_values) == len(after_values):
        pairs = zip(before_values, after_values, strict=True)
        return EvaluationChange(name, unit, before, after, Estimate.of([b - a for a, b in pairs]), paired=True)
    error = math.hypot(before.standard_error, after.standard_error)
    return EvaluationChange(name, unit, before, after, Estimate(after.mean - before.mean, error), paired=False)


def _estimate(data: dict[str, Any]) -> Estimate:
    return Estimate(_number(data["mean"]), _number(data["standard_error"]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
