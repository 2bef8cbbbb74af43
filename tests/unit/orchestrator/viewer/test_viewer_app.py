"""What the viewer answers about runs of every kind, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config.report import SampleFilesConfig
from orchestrator.report.run_files import read_record, samples_of, write_state
from orchestrator.run.run_lock import held
from orchestrator.run.sample_files import write_samples
from tests.unit.orchestrator.viewer.viewer_client import Viewer
from tests.unit.orchestrator.viewer.written_runs import (
    ALL,
    ROWS,
    Said,
    a_run,
    report_step,
    step_samples_of,
    words,
    writing,
)


def test_runs_are_listed_with_the_state_that_they_are_in(whole: Path, tmp_path: Path) -> None:
    broken = a_run(tmp_path / "series/broken", steps=1)
    write_state(broken, replace(read_record(broken).state, status="running", started="2020-01-01T00:00:00+00:00"))
    bad = a_run(tmp_path / "series/bad", steps=1)
    (bad / "metrics.jsonl").write_text("not json\n")
    viewer = Viewer(whole, tmp_path / "series")
    told = viewer.ask("runs")
    lines = {line["short"]: line for line in told["runs"]}
    assert {name: line["state"] for name, line in lines.items()} == {
        **{"whole": "done", "broken": "interrupted", "bad": "damaged"}
    }
    assert (lines["whole"]["step"], lines["whole"]["steps"]) == (3, 3)
    assert ["score", "+0.300"] in lines["whole"]["numbers"]
    assert "metrics.jsonl holds a line that is not JSON" in lines["bad"]["problem"]
    assert told["runs"][-2]["short"] == "broken" and told["first"] == []  # the latest first; the folder is no run
    with held(broken):
        assert viewer.ask("run", run=str(broken))["state"] == "running"
    assert viewer.ask("run", run=str(bad))["sample_steps"] == [1]  # what is whole of it is shown
    assert Viewer(whole, broken).ask("runs")["first"] == [str(whole), str(broken)]


def test_the_head_of_a_run(whole: Path) -> None:
    head = Viewer(whole).ask("run", run=str(whole))
    assert head["sample_steps"] == [1, 2, 3] and head["whole_steps"] == 3 and head["problems"] == []
    assert [(one["at"], one["label"]) for one in head["evaluations"]] == [("e0", "before"), ("e1", "after")]
    assert "objective/kl" in [one["key"] for one in head["metrics"]]


def test_charts_are_the_reports_and_any_metric_is_one(whole: Path, tmp_path: Path) -> None:
    viewer = Viewer(whole, a_run(tmp_path / "other", steps=2))
    titles = [card["title"] for card in viewer.ask("charts", run=str(whole))]
    assert titles[:2] == ["Score", "Proxy score, held out"] and "KL to the reference" in titles
    picked, *_ = viewer.ask("charts", run=str(whole), metric="response/length_mean")
    assert picked["title"] == "response/length_mean" and picked["figure"]["data"][0]["y"] == [8.0] * 3
    over = viewer.ask("charts", run=[str(whole), str(tmp_path / "other")])
    (score,) = (card for card in over if card["title"] == "score/mean")
    assert [line["x"] for line in score["figure"]["data"]] == [[1, 2, 3], [1, 2]]


def test_a_page_of_a_steps_samples(whole: Path) -> None:
    viewer = Viewer(whole)
    told = viewer.ask("samples", run=str(whole), at="2", sort="score", descending=True, limit=2)
    assert (told["total"], told["matching"]) == (3, 3)
    assert [(row["row"], row["score"]) for row in told["rows"]] == [(2, 3.0), (0, 1.5)]
    assert told["rows"][0]["response"] == "a Small engine 2" and told["rows"][0]["seed"] == str(2**60 + 2)
    rest = viewer.ask("samples", run=str(whole), at="2", sort="score", descending=True, limit=2, offset=2)
    assert [row["row"] for row in rest["rows"]] == [1]
    kinds = {one["name"]: one["kind"] for one in told["columns"]}
    assert (kinds["score"], kinds["finished"], kinds["response"]) == ("number", "flag", "text")
    assert "values" not in kinds
    assert told["summary"]["score"]["mean"] == pytest.approx(4 / 3)
    cut = viewer.ask("samples", run=str(whole), at="2", where=["finished=false", "score>-1"], search="OLD river")
    assert [row["row"] for row in cut["rows"]] == [1] and cut["matching"] == 1
    none = viewer.ask("samples", run=str(whole), at="2", search="nowhere")
    assert none["rows"] == [] and "prompt" in [one["name"] for one in none["columns"]]


def test_one_sample_has_its_tokens_and_what_was_recorded_of_each(whole: Path) -> None:
    told = Viewer(whole).ask("sample", run=str(whole), at="3", row=2)
    assert told["prompt"] == ROWS[2].prompt and told["response"] == "a Small engine 3"
    assert "".join(told["tokens"]["texts"]) == "a Small engine 3"
    assert told["tokens"]["ids"] == words().encode("a Small engine 3") and not any(told["tokens"]["special"])
    numbers = {one["key"]: one for one in told["numbers"]}
    begin = len(words().encode(ROWS[2].prompt))
    own = [2 + 0.01 * (begin + place) for place in range(told["tokens"]["count"])]
    assert numbers["log_ratio"]["values"] == pytest.approx(own)
    assert numbers["value"]["values"] == pytest.approx(own) and numbers["surprisal"]["values"] == pytest.approx(own)
    assert "missing" in numbers["entropy"]
    assert told["columns"]["kl"] == pytest.approx(sum(own), rel=1e-5)


def test_tokens_that_are_parts_of_a_character_have_it_once(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=1, rows=[Said("a", "é😀<|im_end|>")])
    told = Viewer(run).ask("sample", run=str(run), at="1", row=0)
    assert "".join(told["tokens"]["texts"]) == told["response"] and len(told["tokens"]["texts"]) > 4
    assert "\ufffd" not in "".join(told["tokens"]["texts"])


def test_a_conversation_has_its_turns(tmp_path: Path) -> None:
    messages = [("user", "two plus three?"), ("assistant", "6"), ("user", "no"), ("assistant", "5")]
    chat = tuple({"role": role, "content": text} for role, text in messages)
    talk = Said("<|im_start|>two plus three?", talk=("6", " no ", "5"), chat=chat)
    run = a_run(tmp_path / "run", steps=1, rows=[replace(talk, response="")])
    viewer = Viewer(run)
    told = viewer.ask("sample", run=str(run), at="1", row=0)
    assert [(one["role"], one["content"]) for one in told["messages"]] == messages
    middle = len(words().encode(" no "))
    assert told["generated"] == [True, *[False] * middle, True] and told["columns"]["turns"] == 2
    (ratio,) = (one for one in told["numbers"] if one["key"] == "log_ratio")
    assert [value is None for value in ratio["values"]] == [False, *[True] * middle, False]
    (row,) = viewer.ask("samples", run=str(run), at="1")["rows"]
    assert row["prompt"] == "two plus three?"  # the question, not the template's text


def test_the_question_of_a_chat_is_its_last_one(tmp_path: Path) -> None:
    said = [("system", "be kind"), ("user", "first"), ("assistant", "yes"), ("user", "second")]
    chat = tuple({"role": role, "content": text} for role, text in said)
    run = a_run(tmp_path / "run", steps=1, rows=[Said("<|im_start|>system …", "third", chat=chat)])
    assert Viewer(run).ask("samples", run=str(run), at="1")["rows"][0]["prompt"] == "second"
    assert Viewer(run).ask("sample", run=str(run), at="1", row=0)["messages"][-1]["content"] == "third 1"


def test_two_runs_in_pairs(whole: Path, tmp_path: Path) -> None:
    other = a_run(tmp_path / "other", steps=2, rows=[ROWS[2], Said("elsewhere"), replace(ROWS[0], score=9.5)])
    viewer = Viewer(whole, other)
    asked = {"run": str(whole), "at": "1", "other": str(other), "other_at": "2", "sort": "difference"}
    told = viewer.ask("pairs", **asked, descending=True)
    assert [(row["row"], row["other_row"], row["difference"]) for row in told["rows"]] == [(0, 2, 10.0), (2, 0, 1.0)]
    assert told["rows"][0]["response"] == "it is red 1" and told["rows"][0]["other_response"] == "it is red 2"
    assert [row["row"] for row in viewer.ask("pairs", **asked, where=["difference<5"])["rows"]] == [2]
    assert [row["row"] for row in viewer.ask("pairs", **asked, search="engine 2")["rows"]] == [2]
    held_out = viewer.ask("pairs", **{**asked, "at": "e1", "other_at": "e1"})
    assert [row["prompt"] for row in held_out["rows"]] == []  # the others were held out there
    with_texts = viewer.ask("pairs", **{**asked, "at": "e0", "other_at": "1"})
    assert [row["prompt"] for row in with_texts["rows"]] == [ROWS[0].prompt]


def test_samples_of_an_evaluation(whole: Path) -> None:
    viewer = Viewer(whole)
    told = viewer.ask("samples", run=str(whole), at="e1")
    assert [row["response"] for row in told["rows"]] == ["later", "later"] and told["total"] == 2
    sample = viewer.ask("sample", run=str(whole), at="e1", row=1)
    assert sample["tokens"]["count"] == 0
    assert sample["numbers"][0]["missing"] == "evaluations keep no numbers of tokens; samples of training steps do"


def test_a_run_without_files_of_samples_shows_those_of_samples_jsonl(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=2, kept=None)
    viewer = Viewer(run)
    head = viewer.ask("run", run=str(run))
    assert head["sample_steps"] == [1, 2] and head["whole_steps"] == 0
    told = viewer.ask("samples", run=str(run), at="2", search="red")
    assert [row["response"] for row in told["rows"]] == ["it is red 2"] and told["total"] == 2
    sample = viewer.ask("sample", run=str(run), at="2", row=0)
    assert "report.samples" in sample["numbers"][0]["missing"] and sample["response"] == "it is red 2"
    found = viewer.ask("same-prompt", run=str(run), at="2", row=0)
    assert [one["at"] for one in found] == ["1", "2", "e0", "e1"]


def test_what_a_run_does_not_keep_is_said(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=1, kept=SampleFilesConfig(texts=False))
    viewer = Viewer(run)
    told = viewer.ask("sample", run=str(run), at="1", row=0)
    assert told["prompt"] is None and told["tokens"]["ids"] is None
    assert "report.samples.token_columns: [advantages]" in json.dumps(told["numbers"])
    assert "report.samples.texts" in viewer.refusal(400, "samples", run=str(run), at="1", search="x")
    assert viewer.ask("samples", run=str(run), at="1", sort="score")["matching"] == 3


def test_ids_stand_for_themselves_without_the_tokenizer(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=1)
    (run / "actor/tokenizer.json").write_text("{")
    told = Viewer(run).ask("sample", run=str(run), at="1", row=0)
    assert told["tokens"]["texts"] is None and told["tokens"]["ids"]


def test_the_tokenizer_that_the_run_starts_from_is_found_from_anywhere(tmp_path: Path) -> None:
    """A configuration's paths begin where the run was started."""
    run = a_run(tmp_path / "home/runs/mine", steps=1)
    shutil.move(run / "actor", tmp_path / "home/policy")
    (run / "config.yaml").write_text("run_dir: runs/mine\nactor: {model: {path: policy}}\n")
    told = Viewer(run).ask("sample", run=str(run), at="1", row=0)
    assert "".join(told["tokens"]["texts"]) == "it is red 1"


def test_the_tokenizer_of_a_converted_model_is_known_by_what_it_says(tmp_path: Path) -> None:
    """A GGUF file has no tokenizer.json; what it was converted to has, also before the run has left a policy."""
    run = a_run(tmp_path / "home/runs/mine", steps=1)
    policy = tmp_path / "home/cache/small-0123"
    policy.parent.mkdir()
    shutil.move(run / "actor", policy)
    model = "run_dir: runs/mine\nmodel_cache: cache\nactor: {model: {path: inputs/small, gguf_file: x.gguf}}\n"
    (run / "config.yaml").write_text(model)
    viewer = Viewer(run)
    asked = {"run": str(run), "at": "1", "row": 0}
    assert "".join(viewer.ask("sample", **asked)["tokens"]["texts"]) == "it is red 1"
    other = words().backend_tokenizer.to_str().replace('"Ġ', '"Ġx')  # another one of the same name
    (policy / "tokenizer.json").write_text(other)
    assert viewer.ask("sample", **asked)["tokens"]["texts"] is None


def test_a_run_that_goes_on_has_news(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with writing(run, steps=5) as report:
        report_step(report, step_samples_of(1, ROWS))
        report.sync()
        viewer = Viewer(run)
        before = viewer.ask("run", run=str(run))
        assert viewer.ask("run", run=str(run))["version"] == before["version"]
        report_step(report, step_samples_of(2, ROWS))
        report.sync()
        after = viewer.ask("run", run=str(run))
        assert after["version"] != before["version"] and (before["step"], after["step"]) == (1, 2)
        assert viewer.ask("samples", run=str(run), at="2")["total"] == 3
        assert viewer.ask("charts", run=str(run))[0]["figure"]["data"][0]["x"] == [1, 2]


def test_a_file_that_is_written_again_is_read_again(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=1)
    viewer = Viewer(run)
    assert viewer.ask("samples", run=str(run), at="1")["rows"][0]["score"] == 0.5
    write_samples(step_samples_of(1, [Said("a", "b", 7.0)]), ALL, samples_of(run, 1))
    assert [row["score"] for row in viewer.ask("samples", run=str(run), at="1")["rows"]] == [7.0]


def test_a_run_that_begins_later_joins_and_what_was_set_aside_is_named(tmp_path: Path) -> None:
    first = a_run(tmp_path / "runs/first", steps=1)
    viewer = Viewer(tmp_path / "runs")
    shutil.copytree(first, first / "set-aside/1")
    a_run(tmp_path / "runs/second", steps=1)
    assert {line["short"] for line in viewer.ask("runs")["runs"]} == {"first", "second"}
    aside = viewer.ask("run", run=str(first))["set_aside"]
    assert aside == [str(first / "set-aside/1")]
    assert Viewer(Path(aside[0])).ask("samples", run=aside[0], at="1")["total"] == 3
    shutil.rmtree(first)
    assert {line["short"] for line in viewer.ask("runs")["runs"]} == {"second"}


def test_alerts_are_told(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    lines = [{"step": 2, "rule": "kl", "action": "warn", "seen": "KL 12", "means": "Too far."}]
    lines += [{"step": 2, "rule": "kl", "at": 3, "factor": 0.5, "times": 1}]
    (run / "alerts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, back = Viewer(run).ask("run", run=str(run))["alerts"]
    assert first == "step 2, kl: KL 12. Too far." and "went back here because of step 3" in back


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "evaluation.jsonl", "samples.jsonl", "alerts.jsonl"])
def test_a_damaged_file_is_named_and_the_rest_is_shown(whole: Path, tmp_path: Path, name: str) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / name).write_text("{\n")
    viewer = Viewer(run)
    head = viewer.ask("run", run=str(run))
    assert name in " ".join([head["problem"], *head["problems"]])
    assert viewer.ask("samples", run=str(run), at="2")["total"] == 3
    assert "".join(viewer.ask("sample", run=str(run), at="2", row=0)["tokens"]["texts"]) == "it is red 2"
    assert [one["at"] for one in viewer.ask("same-prompt", run=str(run), at="2", row=0)][:3] == ["1", "2", "3"]
    assert head["sample_steps"] == [1, 2, 3]


def test_a_damaged_file_of_samples_is_named(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    samples_of(run, 2).write_bytes(b"PAR1")
    viewer = Viewer(run)
    for path, more in (("samples", {}), ("sample", {"row": 0})):
        assert "step-000002.parquet is not as a run" in viewer.refusal(400, path, run=str(run), at="2", **more)
    assert viewer.ask("samples", run=str(run), at="1")["total"] == 3


def test_a_run_that_is_removed_leaves_the_others(whole: Path, tmp_path: Path) -> None:
    gone = a_run(tmp_path / "gone", steps=1)
    viewer = Viewer(whole, gone)
    assert len(viewer.ask("runs")["runs"]) == 2
    shutil.rmtree(gone)
    assert [line["run"] for line in viewer.ask("runs")["runs"]] == [str(whole)]


def test_text_that_is_no_unicode_is_sent(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=1, kept=None)
    line = {"prompt": "\ud800", "response": "\0", "proxy": None, "gold": None, "kl": 0, "finished": True}
    (run / "samples.jsonl").write_text(json.dumps({"step": 1, **line}) + "\n")
    (row,) = Viewer(run).ask("samples", run=str(run), at="1")["rows"]
    assert (row["prompt"], row["response"], row["score"]) == ("?", "\0", None)
