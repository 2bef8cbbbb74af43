"""What the viewer's page asks for, as plain values for JSON: runs, charts, pages of samples, one sample, pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow

from orchestrator.known_metrics import metric_of, metrics_in
from orchestrator.metric_types import Metric
from orchestrator.report.charts import (
    evaluation_cards,
    gap_cards,
    metric_card,
    reliability_cards,
    run_cards,
    training_cards,
)
from orchestrator.report.run_files import ALERTS_FILE, RunRecord, kept_samples, read_lines
from orchestrator.viewer.errors import NotThere
from orchestrator.viewer.sample_pairs import sample_pairs
from orchestrator.viewer.sample_query import SampleQuery, matching, summary
from orchestrator.viewer.sample_search import search_steps
from orchestrator.viewer.sample_store import CHAT_COLUMN, SampleStore, evaluation_table
from orchestrator.viewer.shelf import Shelf
from orchestrator.viewer.token_numbers import token_numbers
from orchestrator.viewer.token_texts import TokenTexts

SHORTENED = 400
"""Characters of a prompt or a response in a table."""
MOST_ROWS = 500
"""Rows of a page."""
EXACT = 2**53
"""Whole numbers from here on are sent as text: a browser would round them."""


@dataclass(frozen=True, slots=True)
class SamplePlace:
    """Where samples stand. Example: `SamplePlace("runs/smoke", step=40)`."""

    run: str
    step: int = 0
    evaluation: int | None = None
    """Which evaluation; None: a training step."""

    @classmethod
    def parse(cls, run: str, at: str) -> SamplePlace:
        """`at`: `40` is a training step, `e2` the third evaluation. ValueError otherwise."""
        kind, digits = at[:1] == "e", at.removeprefix("e")
        if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
            raise ValueError(f"at={at!r} is no place; use a step such as 40, or e0 for the first evaluation")
        return cls(run, evaluation=int(digits)) if kind else cls(run, step=int(digits))


class ViewerAnswers:
    """Answers from the files of the runs on a shelf.

    NotThere: there is no such thing. ValueError: a file is damaged, or what is asked makes no sense.
    """

    def __init__(self, shelf: Shelf) -> None:
        self._shelf, self._store, self._texts = shelf, SampleStore(), TokenTexts()

    def runs(self) -> dict[str, Any]:
        """All runs, the latest first, and which are shown first."""
        lines = sorted(map(self._shelf.line, self._shelf.look()), key=lambda line: line.started, reverse=True)
        return {"runs": [asdict(line) for line in lines], "first": self._shelf.first}

    def run(self, name: str) -> dict[str, Any]:
        """The head of a run: its state, where there are samples, what was warned of."""
        line, run_dir = self._shelf.line(name), self._shelf.folder(name)
        told: dict[str, Any] = {**asdict(line), "version": self._shelf.version(name)}
        told |= {"set_aside": self._shelf.set_aside(name), "problems": []}
        told |= {name: [] for name in ("sample_steps", "evaluations", "alerts", "metrics")}
        told["sample_steps"] = list(kept_samples(run_dir))
        told["whole_steps"] = len(told["sample_steps"])
        with _noted(told["problems"]):
            told["sample_steps"] = self._store.steps(run_dir)
        with _noted(told["problems"]):
            told["alerts"] = [_alert(line) for line in read_lines(run_dir / ALERTS_FILE)]
        if not line.problem:
            record = self._shelf.record(name)
            shown = [(place, one) for place, one in enumerate(record.evaluations) if one.samples]
            told["evaluations"] = [{"at": f"e{place}", "label": one.label, "step": one.step} for place, one in shown]
            told |= {"error": record.state.error, "ended": record.state.ended, "facts": record.state.facts}
            keys = metrics_in(key for step in record.metrics for key in step)
            told["metrics"] = [{"key": key, "about": metric.description} for key, metric in keys.items()]
        return told

    def charts(self, names: Sequence[str], picked: Sequence[str]) -> list[dict[str, Any]]:
        """The charts of a run, or of several over each other; those of the metrics `picked` come first."""
        records = {name: self._shelf.record(name) for name in names}
        shorts = {name: Path(name).resolve().name for name in names}
        alike = len({*shorts.values()}) < len(shorts)
        named = {name if alike else shorts[name]: record for name, record in records.items()}
        cards = [metric_card(metric_of(key) or Metric(key, "", "A metric"), named) for key in picked]
        if len(records) == 1:
            (record,) = records.values()
            several = record.evaluations if len({one.step for one in record.evaluations}) > 1 else []
            heldout = evaluation_cards(record.heldout_sets) if several else []
            training = training_cards(record)  # the score first, as it is trained and as it is measured
            cards += training[:1] + heldout + training[1:]
            cards += gap_cards(several) + reliability_cards(record.state.reliability)
        else:
            cards += run_cards(named)
        return [asdict(card) for card in cards]

    def samples(self, place: SamplePlace, query: SampleQuery, offset: int, limit: int) -> dict[str, Any]:
        """A page of a step's samples, and what all that match have in common."""
        table = self._table(place, query.reads_texts)
        rows = matching(table, query)
        numbers = rows[offset : offset + limit].to_pylist()
        shown = [
            {"row": row, **_short(one)} for row, one in zip(numbers, self._rows(place, numbers, table), strict=True)
        ]
        told = {"total": table.num_rows, "matching": len(rows), "rows": shown, "columns": _columns(self._schema(place))}
        return {**told, "summary": summary(table, rows)}

    def search(self, run: str, query: SampleQuery, before: int | None) -> dict[str, Any]:
        """Which training steps of a run, before step `before`, have samples that are asked for: some at a time."""
        return asdict(search_steps(self._store, self._shelf.folder(run), query, before, _short))

    def sample(self, place: SamplePlace, row: int) -> dict[str, Any]:
        """One sample: its columns, its messages, its tokens and what was recorded of each."""
        whole = self._whole(place, row)
        ids = whole.get("token_ids")
        texts = (
            None
            if ids is None
            else self._texts.of(
                self._shelf.folder(place.run), self._whole_record(place.run), ids, whole.get("response")
            )
        )
        nothing = self._nothing(place)
        names = ("old_logprobs", "rollout_logprobs", "reference_logprobs", "values", "returns", "advantages")
        plain = {key: value for key, value in whole.items() if not isinstance(value, list)}
        return {
            "row": row,
            "columns": {key: _sent(value) for key, value in plain.items() if key not in ("prompt", "response")},
            **{key: whole.get(key) for key in ("prompt", "response", CHAT_COLUMN, "generated")},
            "tokens": {
                "ids": ids,
                "texts": None if texts is None else [text for text, _ in texts],
                "special": None if texts is None else [special for _, special in texts],
                "count": max((len(whole[name] or ()) for name in (*names, "token_ids") if name in whole), default=0),
            },
            "numbers": token_numbers(whole, nothing),
        }

    def same_prompt(self, place: SamplePlace, row: int, others: Sequence[str]) -> list[dict[str, Any]]:
        """The samples to the prompt of a sample, in all steps of its run and of `others`."""
        whole = self._whole(place, row)
        found = []
        for name in dict.fromkeys([place.run, *others]):
            run_dir = self._shelf.folder(name)
            known = whole.get("prompt"), whole.get("prompt_id"), place.step
            for one in self._store.same_prompt(run_dir, *known, by_row=name == place.run):
                found.append({"run": name, "at": str(one["step"]), "label": f"step {one['step']}", **_short(one)})
            record = self._whole_record(name)
            for number, result in enumerate(record.evaluations if record else ()):
                for its, sample in enumerate(result.samples):
                    if sample.prompt == whole.get("prompt"):
                        (one,) = evaluation_table([result], 0).slice(its, 1).to_pylist()
                        told = {"at": f"e{number}", "label": result.label, "step": result.step, "row": its}
                        found.append({"run": name, **told, **_short(one)})
        return found

    def pairs(
        self, one: SamplePlace, other: SamplePlace, query: SampleQuery, offset: int, limit: int
    ) -> dict[str, Any]:
        """A page of the samples of two places, paired by prompt."""
        paired = sample_pairs(self._table(one, texts=True), self._table(other, texts=True))
        rows = matching(paired, query)
        page = paired.take(rows[offset : offset + limit])
        chats = self._rows(one, page["row"].to_pylist(), None, columns=(CHAT_COLUMN, "turns"))
        shown = [_short({**pair, **chat}) for pair, chat in zip(page.to_pylist(), chats, strict=True)]
        told = {"total": paired.num_rows, "matching": len(rows), "rows": shown, "columns": _columns(paired.schema)}
        return {**told, "summary": summary(paired, rows)}

    def _table(self, place: SamplePlace, texts: bool) -> pyarrow.Table:
        if place.evaluation is not None:
            return evaluation_table(self._shelf.record(place.run).evaluations, place.evaluation)
        return self._store.table(self._shelf.folder(place.run), place.step, texts)

    def _whole_record(self, run: str) -> RunRecord | None:
        """None if one of its files is damaged, which the head of the run tells: samples are shown without them."""
        try:
            return self._shelf.record(run)
        except ValueError:
            return None

    def _schema(self, place: SamplePlace) -> pyarrow.Schema:
        if place.evaluation is not None:
            return self._table(place, texts=True).schema
        return self._store.schema(self._shelf.folder(place.run), place.step)

    def _rows(
        self, place: SamplePlace, rows: Sequence[int], table: pyarrow.Table | None, columns: Sequence[str] = ()
    ) -> list[dict[str, Any]]:
        """Rows with what a table shows: what `table` has, texts and messages."""
        wanted = columns or (*(table.column_names if table is not None else ()), "prompt", "response", CHAT_COLUMN)
        kept = self._schema(place).names
        names = [name for name in dict.fromkeys(wanted) if name in kept]
        if not rows or not names:
            return [{} for _ in rows]
        if place.evaluation is not None:
            found = self._table(place, texts=True).select(names).take(rows)
        else:
            found = self._store.rows(self._shelf.folder(place.run), place.step, rows, names)
        return found.to_pylist()

    def _whole(self, place: SamplePlace, row: int) -> dict[str, Any]:
        """A row with all that is kept of it."""
        if place.evaluation is None:
            return self._store.rows(self._shelf.folder(place.run), place.step, [row]).to_pylist()[0]
        table = self._table(place, texts=True)
        if row >= table.num_rows:
            raise NotThere(f"there is no such row: the evaluation shows {table.num_rows} samples")
        return table.slice(row, 1).to_pylist()[0]

    def _nothing(self, place: SamplePlace) -> str:
        """Why nothing is recorded of any token there; empty if there is a file of the step."""
        if place.evaluation is not None:
            return "evaluations keep no numbers of tokens; samples of training steps do"
        there = place.step in kept_samples(self._shelf.folder(place.run))
        return "" if there else "this step has no file of samples; the section report.samples writes one"


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Context whose error is noted, so that one damaged file does not hide the others."""
    try:
        yield
    except ValueError as error:
        problems.append(str(error))


def _alert(line: Mapping[str, Any]) -> str:
    """A line of `alerts.jsonl` as a text."""
    told = f"step {line['step']}, {line.get('rule')}"
    if "seen" in line:
        return f"{told}: {line['seen']}. {line.get('means', '')}"
    return f"{told}: the run went back here because of step {line.get('at')}"


def _columns(schema: pyarrow.Schema) -> list[dict[str, str]]:
    """Name and kind (`number`, `flag`, `text`) of each column that can be filtered and sorted."""

    def kind(of: pyarrow.DataType) -> str:
        return "flag" if pyarrow.types.is_boolean(of) else "text" if pyarrow.types.is_string(of) else "number"

    return [{"name": f.name, "kind": kind(f.type)} for f in schema if not pyarrow.types.is_nested(f.type)]


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table: long texts cut, and of a chat its last question in place of the template's text."""
    return dict(_shortened(row))


def _shortened(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    asked = [one["content"] for one in row.get(CHAT_COLUMN) or () if one["role"] == "user"]
    for key, value in row.items():
        if key == "prompt" and asked:
            yield key, asked[0 if row.get("turns") else -1][:SHORTENED]
        elif key != CHAT_COLUMN:
            yield key, value[:SHORTENED] if isinstance(value, str) else _sent(value)


def _sent(value: Any) -> Any:
    return str(value) if isinstance(value, int) and abs(value) >= EXACT else value
