"""Samples of a run from its files: what is read of them, what stays in memory, and where the same prompt stands."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from orchestrator.config.report import SampleFilesConfig
from orchestrator.report.run_files import SAMPLES_FOLDER
from orchestrator.run.sample_files import ROWS_OF_A_GROUP, write_samples
from orchestrator.viewer import sample_store
from orchestrator.viewer.sample_store import SampleStore, read_rows
from tests.unit.orchestrator.viewer.viewer_client import Viewer
from tests.unit.orchestrator.viewer.written_runs import (
    ROWS,
    Said,
    a_run,
    step_samples_of,
)


def test_a_row_is_read_from_its_group_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Said("p", f"r{number}", float(number)) for number in range(2 * ROWS_OF_A_GROUP + 3)]
    file = tmp_path / SAMPLES_FOLDER / "step-000001.parquet"
    write_samples(step_samples_of(1, rows, each=len(rows)), SampleFilesConfig(), file)
    assert parquet.ParquetFile(file).metadata.num_row_groups == 3
    asked: list[list[int]] = []
    read: Callable[..., Any] = parquet.ParquetFile.read_row_groups

    def seen(self: Any, groups: list[int], *more: Any) -> Any:
        asked.append(list(groups))
        return read(self, groups, *more)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_groups", seen)
    wanted = [2 * ROWS_OF_A_GROUP + 2, 0, ROWS_OF_A_GROUP - 1, 2 * ROWS_OF_A_GROUP]
    found = read_rows(parquet.ParquetFile(file), wanted, ["response", "nope"])
    assert found["response"].to_pylist() == [f"r{row}" for row in wanted] and asked == [[0, 2]]


def test_few_tables_stay_in_memory(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", steps=9)
    store = SampleStore()
    for step in range(1, 10):
        assert store.table(run, step, texts=False)["step"].to_pylist() == [step] * 3
    assert len(store._tables) == 6


def test_a_table_that_is_in_memory_is_not_read_again(whole: Path) -> None:
    store = SampleStore()
    kept = store.table(whole, 1, texts=True)
    assert store.table(whole, 1, texts=True, keep=False) is kept
    assert store.table(whole, 2, texts=True, keep=False) is not store.table(whole, 2, texts=True, keep=False)


def test_the_same_prompt_is_found_in_every_step_and_in_the_evaluations(whole: Path, tmp_path: Path) -> None:
    other = a_run(tmp_path / "other", steps=1, rows=ROWS[1:])
    viewer = Viewer(whole, other)
    told = viewer.ask("same-prompt", run=str(whole), at="2", row=1, other=[str(other)])
    mine = [(one["label"], one["row"], one["response"]) for one in told if one["run"] == str(whole)]
    text = ROWS[1].response
    assert mine == [
        *((f"step {step}", 1, f"{text} {step}") for step in (1, 2, 3)),
        *(("before", 1, text), ("after", 1, "later")),
    ]
    its = [(one["at"], one["row"]) for one in told if one["run"] == str(other)]
    assert its == [("1", 0), ("e0", 0), ("e1", 0)]


def test_a_prompt_of_many_steps_is_told_in_those_that_are_near(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_store, "MOST_STEPS", 2)
    told = Viewer(whole).ask("same-prompt", run=str(whole), at="1", row=1)
    assert [one["at"] for one in told] == ["1", "2", "e0", "e1"]


def test_a_row_of_the_prompts_with_another_text_is_another_prompt(whole: Path, tmp_path: Path) -> None:
    """In a run with other prompts."""
    other = a_run(tmp_path / "other", steps=1, rows=[Said("Tell me about the old river")])
    told = Viewer(whole, other).ask("same-prompt", run=str(whole), at="1", row=1, other=[str(other)])
    assert {one["run"] for one in told} == {str(whole)}


def test_without_texts_a_row_of_another_runs_prompts_says_nothing(tmp_path: Path) -> None:
    kept = SampleFilesConfig(texts=False)
    runs = [a_run(tmp_path / name, steps=1, kept=kept) for name in ("one", "other")]
    asked: dict[str, Any] = {"run": str(runs[0]), "at": "1", "row": 1, "other": [str(runs[1])]}
    told = Viewer(*runs).ask("same-prompt", **asked)
    assert {one["run"] for one in told if one["at"] == "1"} == {str(runs[0])}


def test_without_a_ledger_the_files_are_looked_through(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    (run / "ledger.jsonl").write_text("damaged\n")
    told = Viewer(run).ask("same-prompt", run=str(run), at="1", row=0)
    assert [one["at"] for one in told] == ["1", "2", "3", "e0", "e1"]
