"""Steps, evaluations and samples as lines of text. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.counts import counted
from orchestrator.display_text import duration, printable
from orchestrator.metric_types import Metric
from orchestrator.metrics import METRICS, RESPONSE_LENGTH
from orchestrator.report.evaluation_results import EvaluationChange, EvaluationResult, SampleRow, evaluation_changes


def step_line(step: int, steps: int, metrics: Mapping[str, float], left: float) -> str:
    """One step on one line; metrics that were not measured are left out."""
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    for row in shown(metrics):
        if row.line == "value":
            parts.append(row.value)
        elif row.line == "name and value":
            parts.append(" ".join(text for text in (row.name, row.value, row.remark) if text))
    if math.isfinite(left) and step < steps:
        parts.append(f"ETA {duration(left)}")
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    if bad:
        parts.append(f"NOT FINITE: {', '.join(bad)}")
    return "  ".join(parts)


@dataclass(frozen=True, slots=True)
class ShownMetric:
    """A metric of a step as text. Example: `ShownMetric("objective/kl", "KL", "2.31", "healthy", "name and value")`."""

    key: str
    name: str
    value: str
    remark: str
    """The standard deviation, or the name of the band that holds the value; may be empty."""
    line: str
    """The part of it in the line of a step, as `orchestrator.metric_types.Shown` says."""


def shown(metrics: Mapping[str, float]) -> Iterator[ShownMetric]:
    """The metrics of a step that the terminal shows, in the order of their declarations."""
    for key, metric in METRICS.items():
        if metric.shown is not None and key in metrics:
            value = metric.shown.format.format(metrics[key])
            yield ShownMetric(key, metric.shown.name, value, _remark(metric, metrics), metric.shown.line)


def _remark(metric: Metric, metrics: Mapping[str, float]) -> str:
    deviation = metric.shown.deviation if metric.shown else ""
    if deviation in metrics:
        return f"(sd {metrics[deviation]:.3f})"
    return metric.band_of(metrics[metric.key], metrics.get(RESPONSE_LENGTH))


def evaluation_lines(result: EvaluationResult, before: EvaluationResult | None) -> str:
    """An evaluation, and its change since the one before training."""
    judged = [] if result.gold is None else [f"gold {_with_error(result.gold.mean, result.gold.standard_error)}"]
    judged += [f"({result.undecided} undecided)"] if result.undecided else []
    parts = [
        f"evaluation {result.label}{f' on {result.name}' if result.name else ''}: {counted(result.prompts, 'prompt')}",
        *judged,
        f"proxy {_with_error(result.proxy.mean, result.proxy.standard_error)}",
        *([] if result.kl is None else [f"KL {result.kl.mean:z.2f} nats"]),
        f"length {result.length.mean:.1f}",
        f"truncated {result.truncated_fraction:.0%}",
        *(f"pass@{k} {_with_error(one.mean, one.standard_error)}" for k, one in result.passed.items()),
    ]
    changes = [] if before is None else [_change_line(change) for change in evaluation_changes(before, result)]
    told = [f"{printable(name)}: {_with_error(one.mean, one.standard_error)}" for name, one in result.by.items()]
    return "\n".join(["  ".join(parts), *(f"  {line}" for line in (*told, *changes))])


def sample_lines(before: EvaluationResult, after: EvaluationResult, width: int = 160) -> str:
    """The responses to the same prompts before and after, each on one line."""
    parts = ["the first held-out prompts, before and after:"]
    for old, new in zip(before.samples, after.samples, strict=False):
        asked = old.messages[-1]["content"] if old.messages else old.prompt
        parts.append(f"prompt: {_short(asked, width)}")
        parts += [
            f"  {name} ({_scores(row)}): {_short(row.response, width)}"
            for name, row in (("before", old), ("after", new))
        ]
    return "\n".join(parts)


def step_sample(step: int, row: SampleRow, width: int) -> str:
    """A response of a step and its prompt, each on one line of at most `width` characters."""
    asked = row.messages[-1]["content"] if row.messages else row.prompt
    lines = (f"step {step}, prompt: {asked}", f"response ({_scores(row)}): {row.response}")
    return "\n".join(_short(line, width, indent=2 * number) for number, line in enumerate(lines))


def _change_line(change: EvaluationChange) -> str:
    difference = change.difference
    size = "" if math.isnan(difference.z) else f", {abs(difference.z):.1f} standard errors"
    return (
        f"{change.name}: {change.before.mean:.3f} -> {change.after.mean:.3f}  "
        f"({_with_error(difference.mean, difference.standard_error)}{size})"
    )


def _with_error(mean: float, error: float) -> str:
    return f"{mean:+z.3f}" if math.isnan(error) else f"{mean:+z.3f} ±{error:.3f}"


def _scores(row: SampleRow) -> str:
    gold = "" if row.gold is None else f"gold {row.gold:+z.2f}, "
    kl = "" if math.isnan(row.kl) else f", KL {row.kl:z.1f}"
    return f"{gold}proxy {row.proxy:+z.2f}{kl}" + ("" if row.finished else ", truncated")


def _short(text: str, width: int, indent: int = 0) -> str:
    line = " " * indent + printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"
