"""Charts side by side in one SVG, for pages that run no script: cards of the report flow in, a drawing that loads
nothing flows out. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from orchestrator.display_text import number, printable
from orchestrator.report.charts import Card

COLUMNS, WIDTH, HEIGHT = 2, 400, 190
LEFT, TOP, RIGHT, BOTTOM = 52, 34, 16, 26
"""Margins of a chart in its cell, in pixels."""
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1b2330; } .soft { fill: #5b6676; font-size: 10px; }
.page { fill: #ffffff; } .axis { stroke: #b9c0cb; } polyline { fill: none; stroke-width: 1.8; }
.c0 { stroke: #1f6fb2; fill: #1f6fb2; } .c1 { stroke: #c8641b; fill: #c8641b; } .c2 { stroke: #15896b; fill: #15896b; }
.c3 { stroke: #a8457f; fill: #a8457f; } .c4 { stroke: #7a63c4; fill: #7a63c4; } tspan { stroke: none !important; }
@media (prefers-color-scheme: dark) {
  text { fill: #e4e9f0; } .soft { fill: #9aa6b6; } .page { fill: #181e27; } .axis { stroke: #4a5667; }
}
""".strip()
COLOURS = 5

Points = Sequence[tuple[float, float | None]]
"""(step, value); None where the value is not finite."""


def curves_svg(cards: Sequence[Card], most: int = 6) -> str:
    """The first `most` charts that are curves, as the text of an SVG; empty without one."""
    drawn = [card for card in cards if card.figure is not None and _curves(card.figure)][:most]
    if not drawn:
        return ""
    width, height = COLUMNS * WIDTH, math.ceil(len(drawn) / COLUMNS) * HEIGHT
    cells = "\n".join(
        f'<g transform="translate({n % COLUMNS * WIDTH} {n // COLUMNS * HEIGHT})">\n{_chart(card)}\n</g>'
        for n, card in enumerate(drawn)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img">\n<style>{STYLE}</style>\n<rect class="page" width="{width}" height="{height}"/>\n'
        f"{cells}\n</svg>\n"
    )


def _curves(figure: Mapping[str, Any]) -> dict[str, Points]:
    """Name → points of the curves in a figure for Plotly that have a value to draw."""
    logarithmic = figure["layout"].get("yaxis", {}).get("type") == "log"
    found: dict[str, Points] = {}
    for trace in figure["data"]:
        if trace["type"] == "scatter" and "stackgroup" not in trace:
            good = (y if y is not None and (y > 0 or not logarithmic) else None for y in trace["y"])
            points = list(zip(trace["x"], good, strict=True))
            if any(y is not None for _, y in points):
                found[trace["name"].partition(" <b>")[0]] = points
    return found


def _chart(card: Card) -> str:
    """A chart in a cell whose corner is at the origin."""
    assert card.figure is not None
    curves = _curves(card.figure)
    logarithmic = card.figure["layout"].get("yaxis", {}).get("type") == "log"
    scale = math.log10 if logarithmic else float
    steps = [x for points in curves.values() for x, _ in points]
    values = [scale(y) for points in curves.values() for _, y in points if y is not None]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    first, last = min(steps), max(steps)
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def place(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (scale(y) - low) / (high - low)
        return f"{LEFT + across * (right - LEFT):.1f},{bottom - up * (bottom - TOP):.1f}"

    ends = [(10**end if logarithmic else end) for end in (low, high)]
    lines = [
        f'<text x="{LEFT}" y="18">{_text(card.title)}{_legend(list(curves))}</text>',
        f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}" fill="none"/>',
        *(
            f'<text class="soft" text-anchor="end" x="{LEFT - 5}" y="{y}">{_text(number(end))}</text>'
            for end, y in zip(ends, (bottom, TOP + 8), strict=True)
        ),
        f'<text class="soft" x="{LEFT}" y="{bottom + 15}">step {first:g}</text>',
        f'<text class="soft" text-anchor="end" x="{right}" y="{bottom + 15}">{last:g}</text>',
    ]
    for n, points in enumerate(curves.values()):
        lines += [_drawn(n, [place(x, y) for x, y in piece]) for piece in _pieces(points)]
    return "\n".join(lines)


def _drawn(n: int, places: Sequence[str]) -> str:
    colour = f"c{n % COLOURS}"
    if len(places) > 1:
        return f'<polyline class="{colour}" style="fill: none" points="{" ".join(places)}"/>'
    x, y = places[0].split(",")
    return f'<circle class="{colour}" cx="{x}" cy="{y}" r="2.5"/>'


def _pieces(points: Points) -> Iterator[list[tuple[float, float]]]:
    """The curve between values that are missing."""
    piece: list[tuple[float, float]] = []
    for x, y in (*points, (0.0, None)):
        if y is not None:
            piece.append((x, y))
        elif piece:
            yield piece
            piece = []


def _legend(names: Sequence[str]) -> str:
    """The curves' names in their colours, if there are several."""
    if len(names) == 1:
        return ""
    return "".join(f'<tspan class="c{n % COLOURS}" dx="10">{_text(name)}</tspan>' for n, name in enumerate(names))


def _text(text: str) -> str:
    return escape(printable(text))
