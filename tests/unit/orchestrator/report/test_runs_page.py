"""The report of several runs: curves over each other, numbers and settings side by side, all text escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.report.evaluation_results import Estimate
from orchestrator.report.reporter import Reporter
from orchestrator.report.run_files import RunState, kept_scores
from orchestrator.report.runs_page import RUNS_HTML, render_runs, runs_page
from tests.unit.orchestrator.report.test_page import EVIL, Wellformed, figures, metrics, ours, record
from tests.unit.orchestrator.run.test_sample_files import SampleFilesConfig, a_run
from tests.unit.outside import outside

OTHER = record(
    6,
    state=RunState("b", 10, facts={"Machine": "1 CPU"}, data=["prompts.train: 9"]),
    config_yaml="seed: 2\nactor: {a: 1}\n",
    evaluations=[],
)


def test_curves_of_runs_are_over_each_other() -> None:
    text = runs_page({"first": record(), "second": OTHER})
    Wellformed(text)
    assert not re.search(r"https?://|url\(|@import|javascript:", ours(text)) and outside(text) == []
    drawn = [part for part in text.split("<figure")[1:] if '<script type="application/json">' in part]
    charts = dict(zip([part.split("<h3>")[1].split("</h3>")[0] for part in drawn], figures(text), strict=True))
    score = charts["score/mean"]
    assert [trace["name"] for trace in score["data"]] == ["first <b>1</b>", "second <b>0.6</b>"]
    assert [len(trace["x"]) for trace in score["data"]] == [10, 6]
    assert "time/generate_s" not in charts, "parts of a step are no curves"


def test_numbers_settings_and_machines_stand_side_by_side() -> None:
    text = runs_page({"first": record(), "second": OTHER})
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in text.split("<tr>")]
    rows = {name: values for name, *values in filter(None, cells)}
    assert rows["score, last step"] == ["+1.000", "+0.600"]
    assert rows["proxy score, held out"] == ["1.133 ± 0.088", "–"]
    assert rows["seed"] == ["1", "2"] and rows["actor.a"] == ["–", "1"]
    assert rows["Machine"] == ["–", "1 CPU"] and rows["Data"] == ["–", "prompts.train: 9"]
    assert "unfinished, 6 of 10 steps" in text
    same = runs_page({"first": record(), "second": record()})
    assert "<p>None.</p>" in same


def test_runs_are_compared_on_the_same_set_of_prompts() -> None:
    plain = record()
    (first, *_) = plain.evaluations
    math = [replace(first, name="math", proxy=Estimate(7.0, 0.5))]
    text = runs_page(
        {
            "first": replace(plain, evaluations=math, other_sets={"code": [replace(first, name="code")]}),
            "second": replace(plain, evaluations=[replace(first, name="code", proxy=Estimate(3.0, 0.5))]),
        }
    )
    cells = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in text.split("<tr>")]
    rows = {name: values for name, *values in filter(None, cells)}
    assert rows["proxy score, held out, math"] == ["7.00 ± 0.50", "–"]
    assert rows["proxy score, held out, code"][1] == "3.00 ± 0.50" and rows["proxy score, held out, code"][0] != "–"


def test_a_metric_of_one_run_says_whose_it_is() -> None:
    more = [{**line, "reward/tone/mean": 0.5} for line in metrics(3)]
    text = runs_page({"first": record(), "second": record(metrics=more)})
    assert '<h3>reward/tone/mean</h3><span class="latest">second 0.5</span>' in text


def test_foreign_text_is_only_text() -> None:
    state = RunState(EVIL, 10, facts={EVIL: EVIL})
    evil = record(state=state, config_yaml=json.dumps({EVIL.encode("ascii", "ignore").decode(): "<script>x</script>"}))
    text = runs_page({EVIL: evil, "plain": record()})
    parsed = Wellformed(text)
    assert [tag for tag, _ in parsed.tags].count("script") == len(figures(text)) + 2
    assert "img" not in {tag for tag, _ in parsed.tags}
    assert "\u202e" not in ours(text)


def test_runs_without_numbers_are_compared_too() -> None:
    nothing = replace(OTHER, metrics=[])
    text = runs_page({"a": nothing, "b": nothing})
    assert "<script" not in text and "script-src &#39;none&#39;" in text


def test_the_page_is_in_the_first_folder_or_where_it_is_wanted(tmp_path: Path) -> None:
    for run in ("x/same", "y/same"):
        with Reporter(tmp_path / run, name="same", steps=1, config_yaml="seed: 1\n", tensorboard=False) as report:
            report.step(1, {"score/mean": 1.0})
    runs = [tmp_path / "x/same", tmp_path / "y/same"]
    assert render_runs(runs) == runs[0] / RUNS_HTML
    text = (runs[0] / RUNS_HTML).read_text(encoding="utf-8")
    assert f"1 {runs[0]}" in text and f"2 {runs[1]}" in text, "equal names are told apart"
    assert render_runs(runs, tmp_path / "page.html").is_file()
    (runs[1] / "config.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"config\.yaml of one of the runs is not YAML"):
        render_runs(runs)


def test_the_scores_of_the_first_and_the_last_step_are_kept(tmp_path: Path) -> None:
    assert kept_scores(tmp_path) == {}
    a_run(tmp_path, SampleFilesConfig())
    assert kept_scores(tmp_path) == {"step 1": [1.0, 2.0, 3.0, 4.0], "step 3": [1.0, 2.0, 3.0, 4.0]}
