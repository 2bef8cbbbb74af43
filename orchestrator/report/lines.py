"""Steps, evaluations and samples as lines of text. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from orchestrator.formats import clock, printable
from orchestrator.report.kl_bands import health
from orchestrator.report.results import Change, EvaluationResult, SampleRow, changes


def step_line(step: int, steps: int, metrics: Mapping[str, float], left: float) -> str:
    """One step on one line; what was not measured is left out."""
    parts = [f"step {step:>{len(str(steps))}}/{steps}"]
    for key, name, show in SHOWN:
        if key in metrics and key not in ("policy/clip_fraction", "value/explained_variance"):
            remark = remark_on(key, metrics)
            value = show(metrics[key])
            parts.append(value if key == "time/step_s" else f"{name} {value}" + (f" {remark}" if remark else ""))
    if math.isfinite(left) and step < steps:
        parts.append(f"ETA {clock(left)}")
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    if bad:
        parts.append(f"NOT FINITE: {', '.join(bad)}")
    return "  ".join(parts)


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


SHOWN = (
    ("score/mean", "score", _signed),
    ("objective/kl", "KL", "{:.2f}".format),
    ("objective/entropy", "entropy", "{:.2f}".format),
    ("response/length_mean", "length", "{:.1f}".format),
    ("response/truncated_fraction", "truncated", _percent),
    ("policy/clip_fraction", "clipped", "{:.1%}".format),
    ("value/explained_variance", "explained variance", "{:.2f}".format),
    ("time/step_s", "time a step", "{:.1f} s".format),
)
"""Key, short name and format of what is shown of a step, in order."""


def remark_on(key: str, metrics: Mapping[str, float]) -> str:
    if key == "score/mean" and "score/std" in metrics:
        return f"(sd {metrics['score/std']:.3f})"
    if key == "objective/kl" and not math.isnan(metrics[key]):
        return health(metrics[key])
    return ""


def evaluation_lines(result: EvaluationResult, before: EvaluationResult | None) -> str:
    """An evaluation, and what has changed since the one before training."""
    judged = [] if result.gold is None else [f"gold {_with_error(result.gold.mean, result.gold.standard_error)}"]
    parts = [
        f"evaluation {result.label}: {result.prompts} prompts",
        *judged,
        f"proxy {_with_error(result.proxy.mean, result.proxy.standard_error)}",
        f"KL {result.kl.mean:.2f} nats",
        f"length {result.length.mean:.1f}",
        f"truncated {result.truncated_fraction:.0%}",
    ]
    if before is None:
        return "  ".join(parts)
    return "\n".join(["  ".join(parts), *(f"  {_change_line(change)}" for change in changes(before, result))])


def sample_lines(before: EvaluationResult, after: EvaluationResult, width: int = 160) -> str:
    """The same prompts answered before and after, each on one line."""
    parts = ["the first held-out prompts, before and after:"]
    for old, new in zip(before.samples, after.samples, strict=False):
        parts.append(f"prompt: {_short(old.prompt, width)}")
        parts += [
            f"  {name} ({_scores(row)}): {_short(row.response, width)}"
            for name, row in (("before", old), ("after", new))
        ]
    return "\n".join(parts)


def _change_line(change: Change) -> str:
    difference = change.difference
    size = "" if math.isnan(difference.z) else f", {abs(difference.z):.1f} standard errors"
    return (
        f"{change.name}: {change.before.mean:.3f} -> {change.after.mean:.3f}  "
        f"({_with_error(difference.mean, difference.standard_error)}{size})"
    )


def _with_error(mean: float, error: float) -> str:
    return f"{mean:+.3f}" if math.isnan(error) else f"{mean:+.3f} ±{error:.3f}"


def _scores(row: SampleRow) -> str:
    gold = "" if row.gold is None else f"gold {row.gold:+.2f}, "
    return f"{gold}proxy {row.proxy:+.2f}, KL {row.kl:.1f}" + ("" if row.finished else ", truncated")


def _short(text: str, width: int) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: width - 1] + "…"
