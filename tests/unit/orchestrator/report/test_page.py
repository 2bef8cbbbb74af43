from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from orchestrator.metrics import METRICS
from orchestrator.report.charts import training_curves
from orchestrator.report.files import RunRecord, RunState
from orchestrator.report.page import page
from orchestrator.report.results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.svg import Drawing, Series, escape, line_chart, nice_ticks, stacked_bars

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&\u202e\x1b\ud800"
VOID = {"meta", "rect", "line", "circle", "path", "br"}


class Wellformed(HTMLParser):
    """Collects tags and attributes; fails on a tag that is not closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID or tag == "path":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def evaluation(label: str, step: int, score: float, text: str = "answer") -> EvaluationResult:
    values = [score, score + 0.1, score + 0.3]
    return EvaluationResult(
        step=step,
        label=label,
        prompts=3,
        proxy=Estimate.of(values),
        gold=Estimate.of(values),
        kl=Estimate(float(step), 0.2),
        length=Estimate(30.0, 2.0),
        truncated_fraction=0.5,
        samples=[SampleRow("ask", text, score, score, 1.0, False)],
        proxy_values=values,
        gold_values=values,
    )


def metrics(steps: int) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "score/mean": step / 10,
            "score/std": 1.0,
            "reward/mean": step / 11,
            "objective/kl": step * 0.7,
            "objective/entropy": 2.0,
            "policy/clip_fraction": 0.1,
            "value/clip_fraction": 0.0,
            "value/loss": math.nan if step == 2 else 1 / step,
            "value/explained_variance": -5.0 / step,
            "response/length_mean": 30.0,
            "engine/logprob_gap_mean": 4e-6,
            "engine/logprob_gap_max": 0.0,
            "kl/coefficient": 0.05,
            "lr/actor": 1e-6,
            "lr/critic": 1e-5,
            "time/generate_s": 3.0,
            "time/update_s": 4.0,
            "time/step_s": 7.1,
        }
        for step in range(1, steps + 1)
    ]


def record(steps: int = 10, **changed: object) -> RunRecord:
    values: dict[str, object] = {
        "state": RunState("smoke", 10, "done", targets={"objective/kl": 4.0}, started="2030-01-01T00:00:00+00:00"),
        "metrics": metrics(steps),
        "evaluations": [evaluation("before", 0, 0.0), evaluation("step 5", 5, 0.5), evaluation("after", 10, 1.0)],
        "samples": [SampleRow("ask", "trained on", 0.5, None, 1.0, True)],
        "config_yaml": "seed: 1\n",
    }
    return RunRecord(**{**values, **changed})  # type: ignore[arg-type]


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    text = page(record())
    parsed = Wellformed(text)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not re.search(r"https?://|url\(|@import|javascript:", text)
    assert all(not name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "default-src 'none'" in text


def test_every_curve_of_the_issue_is_there() -> None:
    text = page(record())
    for title in (
        "Score", "KL to the reference", "Entropy", "Clip fraction", "Value loss", "Explained variance",
        "Response length", "Seconds by phase", "Log-probability gap", "KL coefficient", "Learning rates",
    ):  # fmt: skip
        assert f"<h3>{title}</h3>" in text
        assert f'role="img" aria-label="{title}' in text
    assert "target 4" in text


def test_every_coloured_kl_band_is_labelled() -> None:
    high = [{"step": step, "objective/kl": step * 4.0} for step in range(1, 11)]
    text = training_curves(record(metrics=high))
    for name in ("close", "healthy", "far", "collapse"):
        assert name in {band for _, band in METRICS["objective/kl"].bands}
        assert f'class="{name}"' in text
    assert "Bands: close &lt;1, healthy 2-6, far 10-20, collapse &gt;20." in text


@pytest.mark.parametrize("place", ["name", "error", "config", "prompt", "label"])
def test_foreign_text_is_only_text(place: str) -> None:
    evaluations = [evaluation("before", 0, 0.0), evaluation("after", 10, 1.0, EVIL)]
    if place == "label":
        evaluations = [evaluation("before", 0, 0.0), evaluation(EVIL, 10, 1.0)]
    samples = [SampleRow(EVIL, EVIL, 0.0, None, 0.0, True)] if place == "prompt" else []
    state = RunState(EVIL if place == "name" else "smoke", 10, "failed", EVIL if place == "error" else "")
    config = EVIL if place == "config" else ""
    text = page(record(state=state, evaluations=evaluations, samples=samples, config_yaml=config))
    parsed = Wellformed(text)
    assert not {tag for tag, _ in parsed.tags} & {"script", "img"}
    assert "\u202e" not in text and "\x1b" not in text
    text.encode("utf-8")
    words = "".join(parsed.words).lower()
    assert "<script>alert('x')</script>" in words, "it is shown as it was written"


def test_headline_has_differences_in_their_standard_errors() -> None:
    text = page(record())
    assert '<td class="number change">+1.000' in text, "equal differences for every prompt: error 0"
    kl_row = re.search(r"KL to the reference<span.*?</tr>", text)
    assert kl_row is not None
    assert "+35.4" in kl_row.group(), "10 nats over hypot(.2, .2)"


def test_before_and_after_stand_side_by_side_for_the_same_prompt_only() -> None:
    other = EvaluationResult(
        **{**_fields(evaluation("after", 10, 1.0)), "samples": [SampleRow("else", "new", 1, 1, 1, True)]}
    )
    same, different = page(record()), page(record(evaluations=[evaluation("before", 0, 0.0), other]))
    assert same.count(">answer<") == 2
    assert different.count(">answer<") == 0


@pytest.mark.parametrize("steps", [0, 1, 2, 500])
def test_any_number_of_steps_is_drawn(steps: int) -> None:
    text = page(record(steps))
    Wellformed(text)
    body = text[text.index("<body>") :]
    assert "nan" not in body.replace('class="nan"', "")
    assert len(text) < 1_500_000


def test_an_empty_run_is_drawn() -> None:
    text = page(RunRecord(RunState("smoke", 10, "failed", "ModelError: no"), [], [], [], ""))
    Wellformed(text)
    assert "failed before the first step ended" in text
    assert "unfinished, 0 of 10 steps" in page(RunRecord(RunState("smoke", 10), [], [], [], ""))


def test_a_curve_has_gaps_and_marks_where_there_is_no_number() -> None:
    svg = line_chart(Drawing("t", [Series("s", [1, 2, 3, 4], [1.0, math.nan, 2.0, 3.0])], str))
    path = re.search(r'class="curve s0" d="([^"]*)"', svg)
    assert path is not None and path.group(1).count("M") == 2
    assert "step 2: s is not a number" in svg
    assert line_chart(Drawing("t", [Series("s", [1], [math.nan])], str)) == ""


def test_a_value_below_the_axis_stays_inside_the_plot() -> None:
    svg = line_chart(Drawing("t", [Series("s", [1, 2], [-50.0, 0.5])], str, low=-1.0, reach=(1.0,)))
    heights = [float(y) for y in re.findall(r'cy="([^"]*)"', svg)]
    assert heights and max(heights) <= 182.0
    assert "s -50.0" in svg, "the tooltip tells the true value"


def test_a_logarithmic_axis_leaves_out_zero() -> None:
    svg = line_chart(Drawing("t", [Series("s", [1, 2, 3], [1e-6, 0.0, 1e-4])], str, logarithmic=True))
    assert "inf" not in svg and "nan" not in svg


def test_bars_are_stacked_to_the_step_time() -> None:
    svg = stacked_bars("t", [1], [Series("a", [1], [1.0]), Series("b", [1], [3.0])], "{:g}".format)
    first, second = (float(h) for h in re.findall(r'class="p\d"[^>]*height="([^"]*)"', svg))
    assert second == pytest.approx(3 * first, abs=0.2)
    assert "step 1: 4" in svg
    many = list(range(1, 1001))
    assert stacked_bars("t", many, [Series("a", many, [1.0] * 1000)], str).count('<g class="bar">') <= 80


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.1, 7.7), (0.0, 3e-6), (1e6, 1.1e6), (4.999, 5.001)])
def test_ticks_are_few_even_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 6
    assert all(low - 1e-9 <= tick <= high + (high - low) * 1e-6 for tick in ticks)
    gaps = {round((b - a) / (high - low), 6) for a, b in pairwise(ticks)}
    assert len(gaps) == 1


def test_escape() -> None:
    assert escape('<a href="x">\'&\n\x00') == "&lt;a href=&quot;x&quot;&gt;&#x27;&amp;\n\ufffd"


def _fields(result: EvaluationResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in EvaluationResult.__dataclass_fields__}
