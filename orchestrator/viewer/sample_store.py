"""Samples of a run from its files: a run's folder and a place in it flow in, tables flow out.

A step's samples come from `samples/step-N.parquet`, or, where a run has none, from `samples.jsonl`, which holds some of
them.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from orchestrator.report.evaluation_results import EvaluationResult, SampleRow, sample_from_json
from orchestrator.report.run_files import SAMPLES_FILE, kept_samples, read_lines, reading, samples_of
from orchestrator.run.sample_files import encodable
from orchestrator.run.sample_ledger import read_ledger
from orchestrator.viewer.errors import NotThere

KEPT_TABLES, KEPT_BYTES = 6, 2**30
"""Tables that stay in memory: the latest that were asked for, as long as all but the last have fewer bytes."""
MOST_STEPS = 200
"""Steps in which the same prompt is looked for, at most."""
TEXT_COLUMNS = ("prompt", "response")
CHAT_COLUMN = "messages"


class SampleStore:
    """Reads what is asked for; keeps the latest tables as long as their files stay as they are."""

    def __init__(self) -> None:
        self._tables = OrderedDict[tuple[Any, ...], Any]()
        self._lock = threading.Lock()

    def steps(self, run_dir: Path) -> list[int]:
        """Training steps with samples, ascending."""
        return sorted({*kept_samples(run_dir), *self._few(run_dir)})

    def table(self, run_dir: Path, step: int, texts: bool, *, keep: bool = True) -> pyarrow.Table:
        """The samples of a step, a row each, without what is kept of each token. NotThere if the step has none,
        ValueError for a damaged file.

        Args:
            texts: with prompts and responses.
            keep: whether it will be asked for again, and stays in memory.
        """
        file = samples_of(run_dir, step)
        if not file.is_file():
            rows = self._few(run_dir).get(step)
            if rows is None:
                raise NotThere(f"step {step} has no samples here")
            return rows

        def read() -> pyarrow.Table:
            with reading(file):
                opened = parquet.ParquetFile(file)
                names = [field.name for field in opened.schema_arrow if not pyarrow.types.is_nested(field.type)]
                whole = opened.read([name for name in names if texts or name not in TEXT_COLUMNS])
            return whole.combine_chunks()  # in one piece, rows are taken and sorted much faster

        return self._known((file, texts), file, read, keep)

    def schema(self, run_dir: Path, step: int) -> pyarrow.Schema:
        """All columns that are kept of a step's samples."""
        file = samples_of(run_dir, step)
        if not file.is_file():
            return self.table(run_dir, step, texts=True).schema
        with reading(file):
            return parquet.read_schema(file)

    def rows(
        self, run_dir: Path, step: int, rows: Sequence[int], columns: Sequence[str] | None = None
    ) -> pyarrow.Table:
        """Rows of a step with all their columns, or those of `columns` that there are, in the order of `rows`."""
        file = samples_of(run_dir, step)
        if not file.is_file():
            table = self.table(run_dir, step, texts=True)
            names = table.column_names if columns is None else [name for name in columns if name in table.column_names]
            return table.select(names).take(rows)
        with reading(file):
            return read_rows(parquet.ParquetFile(file), rows, columns)

    def same_prompt(
        self, run_dir: Path, prompt: str | None, prompt_id: int | None, near: int, by_row: bool
    ) -> list[dict[str, Any]]:
        """Samples of a prompt in all steps of a run, by step: `step`, `row`, score, KL, length, response. A prompt is
        known by its row among the training prompts and by its text.

        Args:
            near: the step whose neighbours are told, if the prompt was drawn in more than `MOST_STEPS`.
            by_row: whether the row suffices where no text is kept; it says nothing of a run with other prompts.
        """
        found, files = [], kept_samples(run_dir)
        if prompt_id is not None:
            drawn = self._steps_with(run_dir, prompt_id, files)
            for step in sorted(drawn, key=lambda step: abs(step - near))[:MOST_STEPS]:
                with reading(files[step]):
                    opened = parquet.ParquetFile(files[step])
                    ids = opened.read(["prompt_id"])["prompt_id"].to_pylist()
                    rows = [row for row, one in enumerate(ids) if one == prompt_id]
                    found += _told(step, rows, read_rows(opened, rows, TOLD_COLUMNS), prompt, by_row)
        try:
            few = self._few(run_dir)
        except ValueError:  # the head of the run tells it
            few = {}
        for step, table in few.items():
            if step not in files:
                rows = [row for row, one in enumerate(table["prompt"].to_pylist()) if one == prompt]
                found += _told(step, rows, table.take(rows), prompt, by_row)
        return sorted(found, key=lambda one: (one["step"], one["row"]))

    def _steps_with(self, run_dir: Path, prompt_id: int, files: Mapping[int, Path]) -> list[int]:
        try:
            drawn = {step: line.prompts for step, line in read_ledger(run_dir)}
        except ValueError:
            drawn = {}
        return [step for step in files if step not in drawn or prompt_id in drawn[step]]

    def _few(self, run_dir: Path) -> dict[int, pyarrow.Table]:
        """The samples in `samples.jsonl`, by step."""
        file = run_dir / SAMPLES_FILE
        if not file.is_file():
            return {}

        def read() -> dict[int, pyarrow.Table]:
            with reading(file):
                steps: dict[int, list[SampleRow]] = {}
                for line in read_lines(file):
                    steps.setdefault(line["step"], []).append(sample_from_json(line, judged=False))
                return {step: as_table(rows) for step, rows in steps.items()}

        return self._known((file,), file, read)

    @property
    def _bytes(self) -> int:
        kept = [list(one.values()) if isinstance(one, dict) else [one] for one in self._tables.values()]
        return sum(table.nbytes for tables in kept for table in tables)

    def _known(self, key: tuple[Any, ...], file: Path, read: Callable[[], Any], keep: bool = True) -> Any:
        """What `read` gave when the file was as it is now; `keep`: whether it stays in memory from now on."""
        seen = file.stat()
        key = (*key, seen.st_mtime_ns, seen.st_size)
        with self._lock:
            if key in self._tables:
                if keep:
                    self._tables.move_to_end(key)
                return self._tables[key]
        found = read()
        if not keep:
            return found
        with self._lock:
            self._tables[key] = found
            while len(self._tables) > KEPT_TABLES or (len(self._tables) > 1 and self._bytes > KEPT_BYTES):
                self._tables.popitem(last=False)
        return found


TOLD_COLUMNS = ("score", "kl", "length", "finished", "prompt", "response")
"""What is told of a sample beside others to the same prompt."""


def _told(
    step: int, rows: Sequence[int], table: pyarrow.Table, prompt: str | None, by_row: bool
) -> list[dict[str, Any]]:
    """The samples among `rows` that have this prompt; where no text is kept, all or none of them."""
    found = []
    for row, one in zip(rows, table.to_pylist(), strict=True):
        if by_row if None in (prompt, one.get("prompt")) else one["prompt"] == prompt:
            found.append(
                {"step": step, "row": row, **{name: one.get(name) for name in TOLD_COLUMNS if name != "prompt"}}
            )
    return found


def read_rows(opened: Any, rows: Sequence[int], columns: Sequence[str] | None = None) -> pyarrow.Table:
    """Rows of a `ParquetFile`, in the order of `rows`; only the groups of rows that hold them are read. NotThere for a
    row that is not there."""
    names = opened.schema_arrow.names if columns is None else [n for n in columns if n in opened.schema_arrow.names]
    groups = range(opened.metadata.num_row_groups)
    begins = [0, *accumulate(opened.metadata.row_group(group).num_rows for group in groups)]
    if any(not 0 <= row < begins[-1] for row in rows):
        raise NotThere(f"there is no such row: the step has {begins[-1]} samples")
    homes = [bisect_right(begins, row) - 1 for row in rows]
    needed = sorted({*homes})
    shifts, before = {}, 0
    for group in needed:
        shifts[group], before = before - begins[group], before + begins[group + 1] - begins[group]
    table = opened.read_row_groups(needed, names)
    return table.take(
        pyarrow.array([row + shifts[home] for row, home in zip(rows, homes, strict=True)], pyarrow.int64())
    )


def as_table(rows: Sequence[SampleRow]) -> pyarrow.Table:
    """Samples of `samples.jsonl` or of an evaluation, with the names of a step's file."""
    columns: dict[str, Any] = {
        "score": pyarrow.array([row.proxy for row in rows], pyarrow.float64()),
        "kl": pyarrow.array([row.kl for row in rows], pyarrow.float64()),
        "finished": pyarrow.array([row.finished for row in rows], pyarrow.bool_()),
        "prompt": pyarrow.array([encodable(row.prompt) for row in rows], pyarrow.string()),
        "response": pyarrow.array([encodable(row.response) for row in rows], pyarrow.string()),
    }
    if any(row.gold is not None for row in rows):
        columns["gold"] = pyarrow.array([row.gold for row in rows], pyarrow.float64())
    form = pyarrow.list_(pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())]))
    chats = [_chat(row) for row in rows]
    if any(chats):
        columns[CHAT_COLUMN] = pyarrow.array(chats, form)
    return pyarrow.table(columns)


def _chat(row: SampleRow) -> list[dict[str, str]] | None:
    if not row.messages and not row.talk:
        return None
    said = row.talk or [{"role": "assistant", "content": row.response}]
    return [{key: encodable(one.get(key)) for key in ("role", "content")} for one in (*row.messages, *said)]


def evaluation_table(results: Sequence[EvaluationResult], place: int) -> pyarrow.Table:
    """The samples that an evaluation shows. NotThere if there is no such evaluation."""
    if place >= len(results):
        raise NotThere(f"the run has {len(results)} evaluations so far")
    return as_table(results[place].samples)
