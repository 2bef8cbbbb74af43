"""A JSON or CSV file → its rows, every value as it stands in the file. Pure but for reading the file.

    {"prompt": "a", "answer": "2020-01-01", "n": 1}      {"prompt": "a", "answer": "2020-01-01", "n": 1}
    {"prompt": "b", "answer": 5, "big": 2 ** 64}         {"prompt": "b", "answer": 5, "big": 18446744073709551616}

No column has a type that its values are cast to: what one row holds says nothing about the next one. CSV has no types
at all, so all its values are text. `BadRows` says what is wrong with a file, and in which line.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.display_text import not_utf8
from roles.text.messages import kind_of_value


class Row(dict[str, Any]):
    """Values by column; it knows where it stands."""

    __slots__ = ("place",)

    place: tuple[str, int] | None
    """File and line; None in a file without lines."""

    def __init__(self, values: Iterable[tuple[str, Any]] | dict[str, Any], place: tuple[str, int] | None = None):
        super().__init__(values)
        self.place = place


class BadRows(ValueError):
    """The file holds no rows."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where rows stand, for errors.

    Example: `str(Where("prompts.train.path=a.jsonl"))` is the text in it, and with the places of the rows `.row(1)` is
    `prompts.train.path=a.jsonl, line 2: row 1`.
    """

    source: str
    """Key and value of the source."""
    places: Sequence[tuple[str, int] | None] = ()
    """File and line of each row; empty, or None, where there is none."""
    numbers: Sequence[int] | None = None
    """Number of each row in the source; None: those from 0 on."""

    def __str__(self) -> str:
        return self.source

    def row(self, row: int) -> str:
        """A row, with the line of its file where the file has lines."""
        file, line = (self.places[row] if self.places else None) or ("", 0)
        found = ("" if self.source.endswith(file) else f", {file}") + f", line {line}" if line else ""
        return f"{self.source}{found}: row {self.numbers[row] if self.numbers else row}"

    def picked(self, rows: Sequence[int]) -> Where:
        """Of these rows alone."""
        numbers = rows if self.numbers is None else [self.numbers[row] for row in rows]
        return Where(self.source, [self.places[row] for row in rows] if self.places else (), numbers)


@dataclass(frozen=True, slots=True)
class Rows:
    """Values by column, each column as long as the others: `{"prompt": ["a", "b"], "answer": ["007", 5]}`."""

    columns: dict[str, list[Any]]
    """Columns in the order of their first appearance; None if a row has no such value."""
    places: list[tuple[str, int] | None] = field(default_factory=list)
    """File and line of each row; empty, or None, where there is none."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Rows:
        """The rows as columns."""
        names = dict.fromkeys(name for row in rows for name in row)
        return cls({name: [row.get(name) for row in rows] for name in names}, [row.place for row in rows])

    @classmethod
    def joined(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one part after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls.of([row for part in parts for row in part.rows()])

    def rows(self) -> Iterator[Row]:
        """One after the other."""
        places = self.places or [None] * len(self)
        for place, *values in zip(places, *self.columns.values(), strict=True):
            yield Row(zip(self.columns, values, strict=True), place)

    def renamed(self, names: dict[str, str]) -> Rows:
        """The columns `names` under the names in front of theirs; what had those names before is gone."""
        kept = {name: column for name, column in self.columns.items() if name not in {*names, *names.values()}}
        return Rows({**{name: self.columns[column] for name, column in names.items()}, **kept}, self.places)

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, in order."""
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def picked(self, rows: Sequence[int]) -> Rows:
        """These rows alone, in this order."""
        places = [self.places[row] for row in rows] if self.places else []
        return Rows({name: [column[row] for row in rows] for name, column in self.columns.items()}, places)

    def first(self, count: int) -> Rows:
        """The first `count` rows, or all."""
        return Rows({name: column[:count] for name, column in self.columns.items()}, self.places[:count])


def read_json(file: Path, encoding: str = "utf-8", field: str | None = None) -> list[Row]:
    """The rows of a JSON file: an object per line, a list of objects, or an object with a list per column.

    `field`: the key of the file's only object under which the rows are.
    """
    text = _text(file, encoding)
    if field is not None:
        return _whole(_parsed(text, 1)[field])
    if text.lstrip().startswith("["):
        return _whole(_parsed(text, 1))
    try:
        return list(_lines(text, file.name))
    except BadRows:
        try:
            whole = json.loads(text)  # one object over several lines?
        except (ValueError, RecursionError):
            whole = None
        if whole is None:
            raise
        return _whole(whole)


def read_csv(file: Path, encoding: str = "utf-8", separator: str = ",") -> list[Row]:
    """The rows of a CSV file whose first line has the columns' names; all values are text, also empty ones."""
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(_text(file, encoding), newline=""), delimiter=separator, strict=True)
    rows: list[Row] = []
    try:
        names = next(reader, [])
        if len(set(names)) < len(names):
            raise BadRows(f"line 1 names a column twice ({', '.join(names)}); rename one")
        for values in filter(None, reader):
            if len(values) != len(names):
                raise BadRows(
                    f"line {reader.line_num} has {len(values)} values, but the first line names {len(names)} columns "
                    f"({', '.join(names)}); quote values that hold a separator"
                )
            rows.append(Row(zip(names, values, strict=True), (file.name, reader.line_num)))
    except csv.Error as error:
        raise BadRows(f"line {reader.line_num} is not CSV: {error}; correct it") from None
    return rows


def _text(file: Path, encoding: str) -> str:
    data = file.read_bytes()
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise BadRows(not_utf8(error)) from None
    if "\0" in text:
        raise BadRows(
            "it holds NUL characters, as UTF-16 does; save it as UTF-8, for example with: iconv -f UTF-16LE -t UTF-8 "
            "FILE > NEW"
        )
    return text


def _lines(text: str, file: str) -> Iterator[Row]:
    # Not splitlines: JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row = _parsed(line, number)
            if not isinstance(row, dict):
                raise BadRows(
                    f"line {number} is {kind_of_value(row)}, not an object with the columns' values; correct it"
                )
            yield Row(row, (file, number))


def _parsed(text: str, line: int) -> Any:
    """The JSON value in `text`, which begins in line `line` of its file."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {line + error.lineno - 1}, column {error.colno}"
        raise BadRows(f"{where} is not JSON: {error.msg}; correct it") from None
    except RecursionError:
        raise BadRows(f"line {line} holds lists or objects that are nested too deeply; flatten them") from None
    except ValueError as error:  # an integer of thousands of digits
        raise BadRows(f"line {line} cannot be read: {error}; write such a number as text") from None


def _whole(value: Any) -> list[Row]:
    """The rows of a file that is one JSON value."""
    if isinstance(value, dict):
        columns = list(value.values())
        if not columns or not all(isinstance(column, list) for column in columns) or len(set(map(len, columns))) > 1:
            raise BadRows("the file is one object without a list per column; write one object per line, or a list")
        return [Row(zip(value, values, strict=True)) for values in zip(*columns, strict=True)]
    if not isinstance(value, list):
        raise BadRows(f"the file is {kind_of_value(value)}, not rows; write one object per line, or a list of objects")
    for row, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise BadRows(f"row {row} is {kind_of_value(entry)}, not an object with the columns' values; correct it")
    return [Row(entry) for entry in value]
