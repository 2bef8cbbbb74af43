from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from plotly.offline import get_plotlyjs

from orchestrator.metrics import METRICS
from orchestrator.report.alert_lines import Alert
from orchestrator.report.charts import training_cards
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow, wilson_interval
from orchestrator.report.page import page
from orchestrator.report.reliability import ReliabilityBin
from orchestrator.report.run_files import RunRecord, RunState
from tests.unit.outside import outside

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&\u202e\x1b\ud800"
VOID = {"meta", "br"}
PLOTLY = get_plotlyjs()


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
        if tag not in VOID:
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


def ours(text: str) -> str:
    """The page without Plotly."""
    assert text.count(PLOTLY) <= 1
    return text.replace(PLOTLY, "")


def figures(text: str) -> list[dict[str, Any]]:
    """What the page gives Plotly to draw."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    return [json.loads(figure, parse_constant=pytest.fail) for figure in found]


def test_the_page_is_well_formed_and_needs_nothing_else() -> None:
    text = page(record())
    assert text.startswith("<!doctype html>")
    parsed = Wellformed(text)
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {"link", "img", "iframe", "object", "base", "form"}
    assert not re.search(r"https?://|url\(|@import|javascript:", ours(text))
    assert outside(text) == []
    assert all(not name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert all("src" not in attributes for _, attributes in parsed.tags)
    assert len(text) < 6_000_000


def test_only_the_scripts_that_draw_may_run_and_nothing_is_sent() -> None:
    text = page(record())
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert len(scripts) == 2 and scripts[0] == PLOTLY
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in policy.group(1).replace("&#39;", "'").split("; "))
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert rules.pop("script-src").split() == [f"'sha256-{digest}'" for digest in digests]
    assert rules == {
        "default-src": "'none'", "style-src": "'unsafe-inline'", "img-src": "data: blob:", "form-action": "'none'",
        "base-uri": "'none'",
    }  # fmt: skip
    assert "showSendToCloud: false" in scripts[1] and 'plotlyServerURL: ""' in scripts[1]
    assert "modeBarButtons: [[" in scripts[1], "the buttons are ours to choose: Plotly's own send the data to a server"


def test_what_the_script_of_the_page_reads_is_in_the_style_sheet() -> None:
    text = ours(page(record(metrics=[{**line, "objective/kl": line["step"] * 4.0} for line in metrics(10)])))
    style = text[text.index("<style>") : text.index("</style>")]
    used = set(re.findall(r'"(--[a-z0-9-]+)"', text[text.index("</style>") :]))
    assert {"--c0", "--c1", "--collapse-band", "--collapse-name", "--bad", "--soft"} <= used
    assert {name for name in used if f"{name}:" not in style} == set()


def test_a_reward_model_shows_how_often_it_is_right_where_it_is_how_sure() -> None:
    curve = [ReliabilityBin(0.6, 0.5, 30), ReliabilityBin(0.9, 0.3, 10)]
    state = RunState("reward", 10, "done", reliability=curve)
    (before, after) = (page(record(state=replace(state, reliability=found), evaluations=[])) for found in ([], curve))
    Wellformed(after)
    assert "Reliability" not in ours(before)
    assert "90 % sure, 30 % right (10 pairs)" in after and "calibration error 22.5 %" in after
    even, drawn = figures(after)[-1]["data"]
    assert even["x"] == even["y"] == [0.5, 1]
    assert (drawn["x"], drawn["y"]) == ([0.6, 0.9], [0.5, 0.3])
    low, high = (0.3 - drawn["error_y"]["arrayminus"][1], 0.3 + drawn["error_y"]["array"][1])
    assert (low, high) == pytest.approx(wilson_interval(0.3, 10), abs=1e-5)


def test_every_curve_of_the_issue_is_there() -> None:
    text = page(record())
    assert len(figures(text)) == text.count('class="plot') == 15
    for title in (
        "Score", "KL to the reference", "Entropy", "Clip fraction", "Value loss", "Explained variance",
        "Response length", "Seconds by phase", "Log-probability gap", "KL coefficient", "Learning rates",
        "Proxy and gold over √KL",
    ):  # fmt: skip
        assert f"<h3>{title}</h3>" in text
        assert f'role="img" aria-label="{title}' in text
    assert "target 4" in text


def test_every_coloured_kl_band_is_labelled() -> None:
    high = [{"step": step, "objective/kl": step * 4.0} for step in range(1, 11)]
    (card,) = training_cards(record(metrics=high))
    assert card.figure is not None
    drawn = {shape["fillcolor"]: shape for shape in card.figure["layout"]["shapes"] if shape["type"] == "rect"}
    for name in ("close", "healthy", "far", "collapse"):
        assert name in {band for _, band in METRICS["objective/kl"].bands.limits}  # type: ignore[union-attr]
        assert f"--{name}-band" in drawn
    assert drawn["--far-band"]["label"]["text"] == "far 10-20"
    assert drawn["--far-band"]["label"]["textposition"] == "top right", "the curve is at its top at step 5 of 10"
    assert [shape["y1"] for shape in drawn.values()] == [1.0, 6.0, 20.0, 40.0], "no band is drawn beyond the curve"
    assert "Bands for responses of 50 tokens: close <1, healthy 2-6, far 10-20, collapse >20." in card.about
    assert "Bands for responses of 50 tokens: close &lt;1, healthy 2-6, far 10-20, collapse &gt;20." in page(
        record(metrics=high)
    )


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
    assert [tag for tag, _ in parsed.tags].count("script") == len(figures(text)) + 2, "the charts' own and no other"
    assert "img" not in {tag for tag, _ in parsed.tags}
    assert "\u202e" not in ours(text) and "\x1b" not in ours(text)
    text.encode("utf-8")
    words = "".join(parsed.words).lower()
    assert "<script>alert('x')</script>" in words, "it is shown as it was written"


def test_the_head_says_what_the_run_was_made_on() -> None:
    facts = {"Models": "models/a (actor)", "Machine": "2 CPUs (x), 8.0 GiB", "Code": "tetrarch 0.1.0, commit 1a2b"}
    state = RunState("smoke", 10, facts=facts, versions={"torch": "2.13", "ray": "2.60"}, data=["", "prompts.train: 9"])
    head = page(record(state=state)).split("</header>")[0]
    for name, text in {**facts, "Versions": "torch 2.13, ray 2.60", "Data": "prompts.train: 9"}.items():
        assert f"<dt>{name}</dt><dd>{text}</dd>" in head
    assert "made-on" not in page(record()).split("</header>")[0].split("</style>")[1]


CHAT = [{"role": "system", "content": "be kind"}, {"role": "user", "content": EVIL}]


def test_chats_and_conversations_are_shown_turn_by_turn() -> None:
    talk = [{"role": "assistant", "content": "first"}, {"role": "user", "content": "again"}]
    samples = [
        SampleRow("<|im_start|>user", "kind words", 0.5, None, 1.0, True, messages=CHAT),
        SampleRow("raw", "first again", 0.5, None, 1.0, True, messages=CHAT, talk=talk),
    ]
    text = page(record(samples=samples))
    parsed = Wellformed(text)
    said = [attributes for tag, attributes in parsed.tags if tag == "div" and attributes.get("class") == "said"]
    assert len(said) == 2 + 2 + 2
    words = [word.strip() for word in parsed.words if word.strip()]
    assert "kind words" in words and "be kind" in words and "first" in words and "again" in words
    assert "<|im_start|>user" not in words and "first again" not in words
    assert "img" not in {tag for tag, _ in parsed.tags}


def test_explained_variance_is_shown_as_it_is() -> None:
    (card,) = training_cards(record(metrics=[{"step": n, "value/explained_variance": -5.0 / n} for n in (1, 2)]))
    assert card.figure is not None
    assert card.figure["data"][0]["y"] == [-5.0, -2.5]
    assert card.figure["layout"]["yaxis"]["autorangeoptions"] == {"include": [0.0, 1.0]}, "nothing is cut off"


def test_scores_have_a_histogram() -> None:
    text = page(record(), {"step 1": [0.0, 0.0, 1.0, 1.0], "step 10": [1.0, 1.0, 1.0, 0.5], "none": [math.nan]})
    Wellformed(text)
    assert "<h3>Distribution of the scores</h3>" in text and "step 10: 4 scores between 0.5 and 1" in text
    first, last, none = figures(text)[-1]["data"]
    assert first["x"] == last["x"] == [0.0, 0.5, 1.0], "few values have a bar each"
    assert (first["y"], last["y"], none["y"]) == ([0.5, 0.0, 0.5], [0.0, 0.25, 0.75], [0.0] * 3)
    assert first["name"] == "step 1 (mean 0.5)"


def test_members_of_an_ensemble_share_a_chart() -> None:
    lines = [{"step": n, "score/a/mean": 1.0 * n, "score/b/mean": 2.0, "reward/tone/mean": 0.5} for n in (1, 2)]
    members, tone = training_cards(record(metrics=lines))
    assert members.title == "Scores of the members" and members.figure is not None
    assert [trace["name"] for trace in members.figure["data"]] == ["a <b>2</b>", "b <b>2</b>"]
    assert tone.title == "Reward: tone" and "under the name tone" in tone.about
    assert members.about.endswith("First to last step: a +1, b +0.")
    spread = [{**line, "score/a/std": 0.25, "score/b/std": math.nan} for line in lines]
    told = training_cards(record(metrics=[*spread, {"step": 3, "score/a/mean": -1.0}]))[0].about
    assert told.endswith("First to last step: a −2 (8 deviations of the first batch), b +0.")


def test_headline_has_differences_in_their_standard_errors() -> None:
    text = page(record())
    assert '<td class="number change">+1.000' in text, "equal differences for every prompt: error 0"
    kl_row = re.search(r"KL to the reference<span.*?</tr>", text, re.DOTALL)
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
    body = ours(text[text.index("<body>") :])
    assert "nan" not in body
    assert len(figures(text)) == (15 if steps else 4)
    assert len(body) < 1_500_000


def test_an_empty_run_is_drawn() -> None:
    text = page(RunRecord(RunState("smoke", 10, "failed", "ModelError: no"), [], [], [], ""))
    Wellformed(text)
    assert "failed before the first step ended" in text
    assert "unfinished, 0 of 10 steps" in page(RunRecord(RunState("smoke", 10), [], [], [], ""))
    unknown = page(RunRecord(RunState("taste", 0, "stopped"), [], [], [], ""))
    assert "stopped, 0 steps" in unknown and "0 of 0" not in unknown


def test_a_run_without_a_number_needs_no_script() -> None:
    text = page(RunRecord(RunState("smoke", 10), [], [evaluation("before", 0, 0.0)], [], ""))
    assert "<script" not in text and "script-src &#39;none&#39;" in text


def test_without_scripts_the_curves_are_told_in_words() -> None:
    """The numbers of a chart stand in the text around it, and every metric has a row in the table."""
    text = page(record())
    words = re.findall(r"<noscript><p class=\"about\">(.*?)</p></noscript>", text, re.DOTALL)
    assert len(words) == len(figures(text))
    assert "score/mean from 0.1 at step 1 to 1 at step 10, between 0.1 and 1; reward/mean from" in words[4]
    assert "generate 3.0 s, update 4.0 s" in "".join(words)
    assert '<span class="latest">7.0 s per step</span>' in text
    assert text.count('<tr><th scope="row"><code>') == len(metrics(1)[0]) - 1


def test_what_could_drive_the_page_is_replaced() -> None:
    text = page(record(state=RunState('<a href="x">\'&\n\x00', 10)))
    assert "<h1>&lt;a href=&#34;x&#34;&gt;&#39;&amp;\n\ufffd</h1>" in text


def _fields(result: EvaluationResult) -> dict[str, object]:
    return {name: getattr(result, name) for name in EvaluationResult.__dataclass_fields__}


def test_other_sets_of_heldout_prompts_have_tables_and_curves_under_their_names() -> None:
    def of_set(name: str, score: float) -> list[EvaluationResult]:
        found = [evaluation(label, step, score + step) for label, step in (("before", 0), ("step 5", 5), ("after", 10))]
        return [replace(one, name=name, decides=name == "math", kl=None) for one in found]

    run = replace(
        record(10), evaluations=of_set("math", 0.25), other_sets={EVIL: of_set(EVIL, 7.0), "": of_set("", 3.0)}
    )
    text = page(run)
    shown = " ".join(Wellformed(text).words)
    assert "Held-out evaluation: math" in shown and "<img" not in text and '<h3 class="set">heldout</h3>' in text
    tables, _, _ = shown.partition("Training")
    assert tables.count("Response length") == 3 and "KL to the reference" not in tables
    card = next(part for part in text.split("<figure") if "Proxy score, held out" in part)
    assert "math from 0.383 at step 0" in card and "heldout from 3.13 at step 0" in card


def test_alerts_that_have_fired_are_listed_with_their_meaning() -> None:
    fired = [
        Alert(3, "kl", "warn", f"objective/kl 12.1 {EVIL}", "The policy is far."),
        Alert(7, "entropy", "rollback", "0.01", "It repeats itself."),
    ]
    shown = Wellformed(text := page(replace(record(10), alerts=fired))).words
    table = [word.strip() for word in shown if word.strip()]
    begin = table.index("Alerts")
    assert table[begin + 6 : begin + 8] == ["3", "kl"] and "<img" not in text
    assert table[begin + 11 : begin + 16] == ["7", "entropy", "0.01", "It repeats itself.", "went back"]
    assert "Alerts" not in Wellformed(page(record(10))).words
