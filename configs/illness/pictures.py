"""Draws the pictures of `configs/illness/README.md` from real runs: `.venv/bin/python configs/illness/pictures.py`

Runs that are not there yet are trained first (`illnesses.py`). Each picture has two metrics of an illness beside the
same metrics of the healthy run, with the limit of the rule that watches them and the step in which it fired.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from configs.illness.illnesses import GOLD_SCORE, ILLNESSES, IllnessRun
from orchestrator.config.alerts import AlertsConfig
from orchestrator.config.kl import KlBudget
from orchestrator.display_text import number
from orchestrator.metrics import METRICS
from orchestrator.run.alert_rules import START, Judgement, above, active_rules, at_least, below, fallen, risen

FOLDER = Path(__file__).parent
WIDTH, HEIGHT = 400, 236
"""Of one of the two charts, in pixels."""
LEFT, TOP, RIGHT, BOTTOM = 54, 62, 16, 36
"""Its margins."""
TICKS, WIDE = 4, 1000
"""About how many ticks an axis has; from which ratio of its values on it is logarithmic."""
STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1b2330; }
.key { font: 600 13px ui-monospace, "DejaVu Sans Mono", monospace; }
.soft, .soft tspan { fill: #5b6676; font-size: 11px; }
.page { fill: #ffffff; } .grid { stroke: #e9ecf1; } .axis { stroke: #b9c0cb; } polyline { fill: none; stroke-width: 2; }
.healthy { stroke: #1f6fb2; fill: #1f6fb2; } .ill { stroke: #c8641b; fill: #c8641b; }
.limit { stroke: #b3261e; stroke-dasharray: 5 4; } .alert { fill: #b3261e; font-size: 11px; }
text.alert { stroke: #ffffff; stroke-width: 4; stroke-linejoin: round; paint-order: stroke; }
text.healthy, text.ill { stroke: none; font-weight: 600; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e9f0; } .soft, .soft tspan { fill: #9aa6b6; } .page { fill: #181e27; } .grid { stroke: #262e3a; }
  .axis { stroke: #4a5667; } .healthy { stroke: #5aa9e6; fill: #5aa9e6; } .ill { stroke: #ee9350; fill: #ee9350; }
  .limit { stroke: #ff8a80; } .alert { fill: #ff8a80; } text.alert { stroke: #181e27; }
}
""".strip()

Points = Sequence[tuple[int, float]]
BOUNDS: dict[Judgement, tuple[str, Callable[[float, float], float]]] = {
    above: ("above", lambda limit, start: limit),
    at_least: ("at least", lambda limit, start: limit),
    below: ("below", lambda limit, start: limit),
    risen: ("above", lambda limit, start: start + limit),
    fallen: ("below", lambda limit, start: start * limit),
}
"""How a rule judges → in words, and the value at which it fires, from its limit and the mean of the first steps."""


@dataclass(frozen=True, slots=True)
class Limit:
    """Where a rule fires. Example: `Limit("spread", 0.9, "at least 0.9")`."""

    rule: str
    value: float
    says: str


def picture(name: str, healthy: IllnessRun, ill: IllnessRun) -> str:
    """The SVG of an illness."""
    charts = "\n".join(
        f'<g transform="translate({place * WIDTH} 0)">\n{_chart(metric, healthy, ill)}\n</g>'
        for place, metric in enumerate(ILLNESSES[name].shown)
    )
    size = f'width="{2 * WIDTH}" height="{HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {HEIGHT}" {size} role="img">\n'
        f'<style>{STYLE}</style>\n<rect class="page" {size}/>\n{charts}\n</svg>\n'
    )


def _chart(metric: str, healthy: IllnessRun, ill: IllnessRun) -> str:
    """One metric of both runs, in a cell whose corner is at the origin."""
    curves = {"healthy": healthy.points(metric), "ill": ill.points(metric)}
    limit = _limit(metric, curves["ill"])
    values = [value for points in curves.values() for _, value in points] + ([limit.value] if limit else [])
    logarithmic = min(values) > 0 and max(values) > WIDE * min(values)
    scale = math.log10 if logarithmic else float
    ticks = _powers(min(values), max(values)) if logarithmic else _ticks(min(values), max(values))
    low, high = scale(ticks[0]), scale(ticks[-1])
    last = max(step for points in curves.values() for step, _ in points)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def across(step: float) -> float:
        return LEFT + step / last * (right - LEFT)

    def up(value: float) -> float:
        return bottom - (scale(value) - low) / (high - low) * (bottom - TOP)

    lines = _heading(metric, ill.name)
    for tick in ticks:
        lines.append(f'<path class="grid" d="M{LEFT} {up(tick):.1f}H{right}"/>')
        lines.append(_text(number(tick), LEFT - 6, up(tick) + 4, "soft", "end"))
    lines.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    for step in range(0, last + 1, _apart(last)):
        lines.append(_text(f"{step}" if step else "step 0", across(step), bottom + 16, "soft", "middle"))
    lines += [_curve(kind, points, across, up) for kind, points in curves.items()]
    rule = "gold" if metric == GOLD_SCORE else limit.rule if limit else ""
    fired = ill.alerts().get(rule)
    lines += _line(limit, up(limit.value)) if limit else []
    lines += _mark(rule, fired, across(fired), up(dict(curves["ill"])[fired])) if fired else []
    return "\n".join(lines)


def _heading(metric: str, ill: str) -> list[str]:
    known = METRICS.get(metric)
    unit = known.unit if known else ""
    return [
        f'<text class="key" x="14" y="22">{escape(metric)}<tspan class="soft" dx="8">{escape(unit)}</tspan></text>',
        _text("healthy", 14, 42, "healthy"),
        _text(ill, 72, 42, "ill"),
    ]


def _curve(kind: str, points: Points, across: Callable[[float], float], up: Callable[[float], float]) -> str:
    places = " ".join(f"{across(step):.1f},{up(value):.1f}" for step, value in points)
    return f'<polyline class="{kind}" style="fill: none" points="{places}"/>'


def _line(limit: Limit, height: float) -> list[str]:
    """The limit of a rule, dashed."""
    right, words = WIDTH - RIGHT, f"alert {limit.rule}: {limit.says}"
    beside = _text(words, right, height + (14 if height < TOP + 20 else -5), "alert", "end")
    return [f'<path class="limit" d="M{LEFT} {height:.1f}H{right}"/>', beside]


def _mark(rule: str, step: int, x: float, y: float) -> list[str]:
    """Where a rule fired."""
    beside, left = y < TOP + 16, x > WIDTH * 0.6  # at the top there is no room above
    start, height = (x - 9 if left else x + 9, y - 4) if beside else (x + 5 if left else x - 5, y - 13)
    words = _text(f"{rule} fires in step {step}", start, height, "alert", "end" if left else "start")
    return [f'<path class="alert" d="M{x - 5:.1f} {y - 9:.1f}h10l-5 8z"/>', words]


def _limit(metric: str, ill: Points) -> Limit | None:
    """The limit of the rule that watches a metric; of some rules it depends on the first steps of the run."""
    start = math.fsum(value for _, value in ill[:START]) / START
    for rule in active_rules(AlertsConfig(), KlBudget()):
        if metric in rule.rule.metrics and rule.rule.judge in BOUNDS:
            words, bound = BOUNDS[rule.rule.judge]
            value = bound(rule.limit, start)
            return Limit(rule.name, value, f"{words} {number(value)}")
    return None


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers from below `low` to above `high`."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / TICKS
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 10) for place in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten from below `low` to above `high`."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    apart = math.ceil((last - first) / (TICKS + 1))
    return [10.0**power for power in range(last - math.ceil((last - first) / apart) * apart, last + 1, apart)]


def _apart(last: int) -> int:
    return next(apart for apart in (1, 2, 5, 10, 20, 50) if last / apart <= 6)


def _text(text: str, x: float, y: float, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def main() -> None:
    healthy = IllnessRun("healthy")
    healthy.train()
    for name in sys.argv[1:] or ILLNESSES:
        ill = IllnessRun(name)
        ill.train()
        (FOLDER / f"{name}.svg").write_text(picture(name, healthy, ill), encoding="utf-8")


if __name__ == "__main__":
    main()
