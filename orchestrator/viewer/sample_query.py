"""Search, filter, sort and page: a table of samples and what is asked flow in, row numbers flow out. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import pyarrow
import pyarrow.compute as pc

TEXTS = ("prompt", "response", "other_response")
"""Columns in which a search looks."""
SUMMED = ("score", "kl", "length", "other_score", "difference")
"""Columns whose mean and range are told."""
_COMPARE = {
    ">=": pc.greater_equal,
    "<=": pc.less_equal,
    "!=": pc.not_equal,
    ">": pc.greater,
    "<": pc.less,
    "=": pc.equal,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """What a column must be. Example: `Condition("score", ">=", "0.5")`, written `score>=0.5`."""

    column: str
    operator: str
    """One of `>= <= != > < =`, or `~`: the text holds the value, whatever its case."""
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """ValueError if the text is no condition."""
        found = re.fullmatch(r"([^<>=!~]+)(>=|<=|!=|>|<|=|~)(.*)", text, re.DOTALL)
        if found is None:
            raise ValueError(f"{text!r} is no condition; write one such as score>=0.5, finished=false or prompt~red")
        return cls(*(part.strip() for part in found.groups()))

    def holds(self, table: pyarrow.Table) -> Any:
        """Boolean for each row; null where there is no value, which is not equal to any."""
        column = _column(table, self.column)
        if pyarrow.types.is_nested(column.type):
            raise ValueError(f"{self.column} has many values in a row, which cannot be compared")
        if self.operator == "~":
            return _contains(column.cast(pyarrow.string()), self.value)
        held = _COMPARE[self.operator](column, pyarrow.scalar(self._typed(column.type), column.type))
        return pc.fill_null(held, True) if self.operator == "!=" else held

    def _typed(self, kind: pyarrow.DataType) -> Any:
        try:
            if pyarrow.types.is_boolean(kind):
                return {"true": True, "false": False}[self.value.strip().lower()]
            if pyarrow.types.is_integer(kind):
                return self._bound(Decimal(self.value))
            if pyarrow.types.is_floating(kind):
                return float(self.value)
        except (ValueError, KeyError, OverflowError, InvalidOperation):
            wanted = "true or false" if pyarrow.types.is_boolean(kind) else "a number"
            raise ValueError(f"{self.column} is {wanted}, and {self.value!r} is not") from None
        return self.value

    def _bound(self, value: Decimal) -> int:
        """The whole number with which a comparison says the same: `length > 2.5` is `length > 2`. ValueError beyond 64
        bits."""
        if not abs(value) < 2**63:
            raise ValueError
        if self.operator in ("=", "!=") and value != int(value):
            raise ValueError
        return math.ceil(value) if self.operator in (">=", "<") else math.floor(value)


@dataclass(frozen=True, slots=True)
class SampleQuery:
    """Which rows of a table, and in which order."""

    search: str = ""
    """What prompt or response must hold, whatever its case; empty: anything."""
    conditions: Sequence[Condition] = ()
    sort: str = ""
    """A column; empty: the order of the batch."""
    descending: bool = False

    @property
    def reads_texts(self) -> bool:
        """Whether prompts and responses are needed to answer."""
        return bool(self.search) or bool({self.sort, *(one.column for one in self.conditions)} & {*TEXTS})


def matching(table: pyarrow.Table, query: SampleQuery) -> pyarrow.Array:
    """Numbers of the rows that are asked for, in the order asked for; rows without a value to sort by come last.
    ValueError says what cannot be asked."""
    keep: Any = None
    found = [one.holds(table) for one in query.conditions]
    texts = [name for name in TEXTS if name in table.column_names]
    if query.search and not texts:
        raise ValueError("this step keeps no texts to search in (report.samples.texts)")
    if query.search:
        held = [pc.fill_null(_contains(table[name], query.search), False) for name in texts]
        found.append(_all(held, pc.or_))
    if found:
        keep = _all(found, pc.and_)
    rows = pyarrow.array(range(table.num_rows), pyarrow.int64())
    if query.sort:
        column = _column(table, query.sort)
        if pyarrow.types.is_nested(column.type):
            raise ValueError(f"{query.sort} has many values in a row, which have no order")
        order = "descending" if query.descending else "ascending"
        rows = pc.sort_indices(pyarrow.table({"by": column}), [("by", order)]).cast("int64")
    elif query.descending:
        rows = rows[::-1]
    return rows if keep is None else rows.filter(pc.take(pyarrow.chunked_array([_flat(keep)]), rows).combine_chunks())


def summary(table: pyarrow.Table, rows: pyarrow.Array) -> dict[str, dict[str, float]]:
    """Column → mean, least and most of the rows' finite values; `truncated` has a mean alone."""
    found = {}
    for name in SUMMED:
        if name in table.column_names:
            values = pc.take(table[name], rows).cast(pyarrow.float64())
            values = values.filter(pc.is_finite(values))
            if len(values):
                least_most = pc.min_max(values).as_py()
                found[name] = {"mean": pc.mean(values).as_py(), "least": least_most["min"], "most": least_most["max"]}
    if "finished" in table.column_names and len(rows):
        finished = pc.mean(pc.take(table["finished"], rows).cast(pyarrow.float64())).as_py()
        if finished is not None:
            found["truncated"] = {"mean": 1.0 - finished}
    return found


def _column(table: pyarrow.Table, name: str) -> Any:
    if name not in table.column_names:
        raise ValueError(f"there is no column {name!r}; there are {', '.join(table.column_names)}")
    return table[name]


def _contains(column: Any, text: str) -> Any:
    return pc.match_substring(column, text, ignore_case=True)


def _all(parts: Sequence[Any], join: Any) -> Any:
    whole = parts[0]
    for part in parts[1:]:
        whole = join(whole, part)
    return whole


def _flat(column: Any) -> pyarrow.Array:
    return column.combine_chunks() if isinstance(column, pyarrow.ChunkedArray) else column
