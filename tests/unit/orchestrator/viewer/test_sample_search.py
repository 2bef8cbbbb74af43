"""The search for samples in all steps of a run: what it finds, where it goes on, and what cannot answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.report import SampleFilesConfig
from orchestrator.report.run_files import samples_of
from orchestrator.run.sample_files import write_samples
from orchestrator.viewer import sample_search
from orchestrator.viewer.sample_query import SampleQuery
from orchestrator.viewer.sample_store import SampleStore
from tests.unit.orchestrator.viewer.viewer_client import Viewer
from tests.unit.orchestrator.viewer.written_runs import ROWS, step_samples_of


def test_samples_of_all_steps_are_searched_the_newest_first(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = Viewer(whole)
    told = viewer.ask("search", run=str(whole), search="small")
    assert [(one["step"], one["matching"], one["total"]) for one in told["steps"]] == [(3, 1, 3), (2, 1, 3), (1, 1, 3)]
    assert (told["looked"], told["before"], told["problems"]) == (3, None, [])
    (row,) = told["steps"][0]["rows"]
    assert (row["row"], row["score"], row["response"]) == (2, 4.0, "a Small engine 3")
    in_order = viewer.ask("search", run=str(whole), where="score>-9", sort="score", descending=True)
    assert [row["row"] for row in in_order["steps"][0]["rows"]] == [2, 0, 1], "without texts, and sorted"
    assert viewer.ask("search", run=str(whole), search="engine 2")["looked"] == 3, "steps without such samples too"
    assert [one["step"] for one in viewer.ask("search", run=str(whole), search="engine 2")["steps"]] == [2]
    monkeypatch.setattr(sample_search, "FOUND_ROWS", 1)
    (few, *_) = viewer.ask("search", run=str(whole), where="score>-9")["steps"]
    assert few["matching"] == 3 and len(few["rows"]) == 1
    assert "there is no column 'tone'" in viewer.refusal(400, "search", run=str(whole), where="tone=1")


@pytest.mark.parametrize("limit", ["FOUND_STEPS", "LOOKING_S"])
def test_a_search_goes_on_where_it_has_ended(whole: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setattr(sample_search, limit, {"FOUND_STEPS": 1, "LOOKING_S": 0.0}[limit])
    viewer, asked = Viewer(whole), {"run": str(whole), "search": "small"}
    told = [viewer.ask("search", **asked)]
    while told[-1]["before"] is not None:
        told.append(viewer.ask("search", **asked, before=told[-1]["before"]))
    assert [[one["step"] for one in part["steps"]] for part in told] == [[3], [2], [1]]
    assert [part["looked"] for part in told] == [1, 1, 1]


def test_a_search_names_a_damaged_file_and_goes_on(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    samples_of(run, 2).write_bytes(b"no parquet")
    told = Viewer(run).ask("search", run=str(run), search="small")
    assert [one["step"] for one in told["steps"]] == [3, 1] and "step-000002.parquet" in told["problems"][0]


def test_a_search_leaves_the_tables_in_memory_alone(whole: Path) -> None:
    store = SampleStore()
    store.table(whole, 1, texts=True)
    store.steps(whole)
    before = store._bytes
    assert len(sample_search.search_steps(store, whole, SampleQuery("small"), None, dict).steps) == 3
    assert store._bytes == before


@pytest.mark.parametrize("parts", [1, 2])
def test_steps_that_cannot_answer_are_named_and_the_others_are_searched(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: int
) -> None:
    """Steps of `samples.jsonl` have no column `trained`."""
    run = shutil.copytree(whole, tmp_path / "run")
    viewer, asked = Viewer(run), {"run": str(run), "where": "trained=false"}
    monkeypatch.setattr(sample_search, "FOUND_STEPS", 3 if parts == 1 else 1)
    for gone, problem, found in ((2, "step 2: ", [3, 1]), (1, "2 steps from 1 to 2: ", [3])):
        samples_of(run, gone).unlink()
        told = [viewer.ask("search", **asked)]
        while told[-1]["before"] is not None:
            told.append(viewer.ask("search", **asked, before=told[-1]["before"]))
        assert [one["step"] for part in told for one in part["steps"]] == found and len(told) == parts
        (said,) = (one for part in told for one in part["problems"])
        assert said.startswith(f"{problem}there is no column 'trained'")
    samples_of(run, 3).unlink()
    assert viewer.refusal(400, "search", **asked).startswith("there is no column 'trained'")


def test_texts_that_only_some_steps_keep_are_searched_there(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    write_samples(step_samples_of(2, ROWS), SampleFilesConfig(texts=False), samples_of(run, 2))
    told = Viewer(run).ask("search", run=str(run), search="small")
    assert [one["step"] for one in told["steps"]] == [3, 1]
    assert told["problems"] == ["step 2: this step keeps no texts to search in (report.samples.texts)"]


def test_a_search_passes_over_steps_that_are_set_aside_meanwhile(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: Callable[..., Any] = SampleStore._known

    def gone(self: SampleStore, key: Any, file: Path, *more: Any) -> Any:
        if file == samples_of(whole, 2):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return known(self, key, file, *more)

    monkeypatch.setattr(SampleStore, "steps", lambda self, run_dir: [1, 2, 3, 9])
    monkeypatch.setattr(SampleStore, "_known", gone)
    told = Viewer(whole).ask("search", run=str(whole), search="small")
    assert [one["step"] for one in told["steps"]] == [3, 1] and told["looked"] == 4
    assert told["problems"] == ["2 steps from 2 to 9: no longer there"]


def test_files_of_samples_are_searched_though_the_other_file_is_damaged(whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "samples.jsonl").write_text("{\n")
    assert [one["step"] for one in Viewer(run).ask("search", run=str(run), search="small")["steps"]] == [3, 2, 1]
