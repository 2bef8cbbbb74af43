"""Curves and stacked bars as figures for Plotly."""

from __future__ import annotations

import math
from itertools import pairwise

from orchestrator.metric_types import Chart
from orchestrator.report.curve_points import MOST_POINTS, Line, thinned
from orchestrator.report.figure import curves, histogram, stacked


def test_a_curve_has_gaps_and_marks_where_there_is_no_number() -> None:
    figure = curves(Chart("t"), [Line("s", [(1, 1.0), (2, math.nan), (3, 2.0), (4, 3.0)])], str, [], [])
    assert figure is not None
    assert figure["data"][0]["y"] == [1.0, None, 2.0, 3.0] and figure["data"][0]["x"] == [1, 2, 3, 4]
    (mark,) = figure["layout"]["annotations"]
    assert mark["x"] == 2 and mark["hovertext"] == "step 2: s is not a number"
    assert curves(Chart("t"), [Line("s", [(1, math.nan)])], str, [], []) is None


def test_a_value_without_neighbours_has_a_dot() -> None:
    points = [(step, math.nan if step in (49, 51) else 1.0) for step in range(1, 100)]
    figure = curves(Chart("t"), [Line("s", points)], str, [], [])
    assert figure is not None and figure["data"][0]["mode"] == "lines+markers"
    assert [at for at, size in enumerate(figure["data"][0]["marker"]["size"]) if size] == [49]


def test_a_value_below_the_axis_stays_inside_the_plot() -> None:
    figure = curves(Chart("t", low=-1.0, reach=(1.0,)), [Line("s", [(1, -50.0), (2, 0.5)])], str, [], [])
    assert figure is not None
    assert figure["layout"]["yaxis"]["autorangeoptions"] == {"include": [1.0], "clipmin": -1.0}
    assert figure["data"][0]["y"] == [-50.0, 0.5], "the pointer shows the true value"


def test_an_axis_starts_at_zero_and_reaches_the_target() -> None:
    figure = curves(Chart("t", low=0.0), [Line("s", [(1, 2.0), (2, 3.0)])], str, [], [7.0])
    assert figure is not None
    assert figure["layout"]["yaxis"]["rangemode"] == "tozero"
    assert figure["layout"]["yaxis"]["autorangeoptions"]["include"] == [7.0]
    (target,) = figure["layout"]["shapes"]
    assert (target["y0"], target["y1"], target["label"]["text"]) == (7.0, 7.0, "target 7.0")


def test_a_logarithmic_axis_leaves_out_zero() -> None:
    points = [(1, 1e-6), (2, 0.0), (3, 1e-4)]
    figure = curves(Chart("t", logarithmic=True), [Line("s", points)], str, [], [])
    assert figure is not None
    assert figure["layout"]["yaxis"] == {"type": "log", "dtick": 1}
    assert figure["layout"]["xaxis"]["dtick"] == 1, "no tick between two steps"
    assert curves(Chart("t", logarithmic=True), [Line("s", [(1, 0.0)])], str, [], []) is None


def test_many_values_of_a_histogram_are_in_equal_bins() -> None:
    figure = histogram({"a": [float(n) for n in range(240)], "b": [0.0, 239.0]})
    assert figure is not None
    first, second = figure["data"]
    assert first["x"] == second["x"] and len(first["x"]) == 24
    assert first["y"] == [round(10 / 240, 6)] * 24 or all(abs(share - 10 / 240) < 0.005 for share in first["y"])
    assert (second["y"][0], second["y"][-1], sum(second["y"])) == (0.5, 0.5, 1.0)
    assert histogram({"a": [math.nan]}) is None and histogram({}) is None


def test_the_parts_of_a_step_are_stacked() -> None:
    figure = stacked([Line("a", [(1, 1.0)]), Line("b", [(1, 3.0)])], ["a 1 s", "b 3 s"])
    assert figure["layout"]["barmode"] == "stack"
    assert [(t["type"], t["name"], t["y"]) for t in figure["data"]] == [
        ("bar", "a 1 s", [1.0]),
        ("bar", "b 3 s", [3.0]),
    ]
    many = stacked([Line(name, [(step, 1.0) for step in range(1000)]) for name in "ab"], "ab")
    assert {trace["stackgroup"] for trace in many["data"]} == {"all"}, "a thousand bars would be a fog"


def test_a_legend_has_room() -> None:
    points = [(1, 1.0)]
    short, long = [[Line(name * length, points) for name in "abc"] for length in (5, 30)]
    heights = [stacked(lines, "abc")["layout"]["height"] for lines in (short, long)]
    assert heights[1] - heights[0] == 19, "two rows of short names, three of long ones"
    alone = curves(Chart("t"), short[:1], str, [], [])
    assert alone is not None and alone["layout"]["height"] == heights[0] - 2 * 19


def test_the_curve_of_a_long_run_has_few_points_and_the_same_extremes() -> None:
    points = [(step, math.sin(step / 500)) for step in range(1, 10_001)]
    points[1233], points[7776] = (1234, 9.0), (7777, -9.0)
    points[4999] = (5000, math.nan)
    figure = curves(Chart("t"), [Line("s", points)], str, [], [])
    assert figure is not None
    x, y = figure["data"][0]["x"], figure["data"][0]["y"]
    assert MOST_POINTS / 3 < len(x) <= MOST_POINTS and x == sorted(x) and (x[0], x[-1]) == (1, 10_000)
    assert y[x.index(1234)] == 9.0 and y[x.index(7777)] == -9.0 and y[x.index(5000)] is None
    assert [mark["x"] for mark in figure["layout"]["annotations"]] == [5000]
    assert figure["layout"]["xaxis"] == {"tickformat": ",d", "hoverformat": ",d"}, "10,000, not 1e+4"
    assert max(after - before for before, after in pairwise(x)) < 40, "no part of the run is left out"
    assert all(value == float(f"{points[step - 1][1]:.6g}") for step, value in zip(x, y, strict=True) if step != 5000)


def test_thinned_curves_of_a_chart_have_values_in_the_same_steps() -> None:
    lines = [Line(str(n), [(step, (step * 7919 * n) % 1009) for step in range(1, 9001)]) for n in range(1, 8)]
    lines.append(Line("held out", [(step, 1.0) for step in range(0, 9001, 100)], [0.1] * 91))
    found = thinned(lines)
    assert len({tuple(line.steps) for line in found[:-1]}) == 1 and len(found[0].points) <= MOST_POINTS
    assert found[-1].errors is not None and len(found[-1].errors) == len(found[-1].points) >= 2
    short = [Line("s", [(step, 1.0) for step in range(MOST_POINTS)])]
    assert thinned(short) == short, "no value of such a run is left out"


def test_the_stack_of_a_long_run_has_few_points_too() -> None:
    figure = stacked([Line("a", [(step, 1.0 * step) for step in range(1, 5001)]) for _ in range(2)], ["a", "b"])
    assert len(figure["data"][0]["x"]) <= MOST_POINTS and figure["data"][0]["x"] == figure["data"][1]["x"]
