"""Search, filter, sort and page, beside plain Python over the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyarrow
import pytest

from orchestrator.viewer.sample_query import Condition, SampleQuery, matching, summary

ROWS: list[dict[str, Any]] = [
    {"score": 1.0, "length": 3, "finished": True, "prompt": "a red fox", "response": "x%y", "dropped": None},
    {"score": -2.5, "length": 9, "finished": False, "prompt": "A RED hen", "response": "plain", "dropped": "truncated"},
    {"score": math.nan, "length": 5, "finished": True, "prompt": "blue", "response": "the Red one", "dropped": None},
    {"score": None, "length": 3, "finished": True, "prompt": "green", "response": ".*", "dropped": None},
    {"score": 0.5, "length": 2, "finished": False, "prompt": "grün", "response": "GRÜN", "dropped": None},
]
for place, seed in enumerate((2**62, 2**62 + 1, 2**62 + 2, None, 7)):
    ROWS[place] |= {"seed": seed, "messages": [{"role": "user", "content": "x"}]}
TABLE = pyarrow.Table.from_pylist(ROWS)


def found(**asked: Any) -> list[int]:
    conditions = [Condition.parse(text) for text in asked.pop("where", [])]
    rows: list[int] = matching(TABLE, SampleQuery(conditions=conditions, **asked)).to_pylist()
    return rows


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("score>=0.5", lambda row: row["score"] is not None and row["score"] >= 0.5),
        ("score<0", lambda row: row["score"] is not None and row["score"] < 0),
        ("length=3", lambda row: row["length"] == 3),
        ("length != 3", lambda row: row["length"] != 3),
        ("length>2.5", lambda row: row["length"] > 2.5),
        ("length>=2.5", lambda row: row["length"] >= 2.5),
        ("length<2.5", lambda row: row["length"] < 2.5),
        ("length<=2.5", lambda row: row["length"] <= 2.5),
        ("finished=false", lambda row: not row["finished"]),
        ("finished=True", lambda row: row["finished"]),
        ("dropped=truncated", lambda row: row["dropped"] == "truncated"),
        ("dropped!=truncated", lambda row: row["dropped"] != "truncated"),
        ("score!=0.5", lambda row: row["score"] != 0.5),
        ("seed=4611686018427387905", lambda row: row["seed"] == 2**62 + 1),
        ("seed>4611686018427387904", lambda row: row["seed"] is not None and row["seed"] > 2**62),
        ("prompt~red", lambda row: "red" in row["prompt"].lower()),
        ("prompt=blue", lambda row: row["prompt"] == "blue"),
    ],
)
def test_a_condition_keeps_the_rows_that_plain_python_keeps(text: str, holds: Callable[[dict[str, Any]], bool]) -> None:
    assert found(where=[text]) == [place for place, row in enumerate(ROWS) if holds(row)]


def test_conditions_and_search_hold_together() -> None:
    assert found(search="RED") == [0, 1, 2]  # in the prompt or in the response, whatever the case
    assert found(search="grün") == [4]
    assert found(search="red", where=["finished=true", "length<5"]) == [0]


def test_a_search_is_no_pattern() -> None:
    assert found(search=".*") == [3] and found(search="%") == [0] and found(search="(") == []


@pytest.mark.parametrize("descending", [False, True])
def test_rows_are_sorted_and_those_without_a_value_come_last(descending: bool) -> None:
    rows = found(sort="score", descending=descending)
    assert rows[:3] == ([0, 4, 1] if descending else [1, 4, 0]) and sorted(rows[3:]) == [2, 3]
    ties = found(sort="length", descending=descending)
    assert ties == ([1, 2, 0, 3, 4] if descending else [4, 0, 3, 2, 1])  # in the batch's order where they are equal
    assert found(descending=descending) == ([4, 3, 2, 1, 0] if descending else [0, 1, 2, 3, 4])
    assert found(sort="length", descending=descending, where=["finished=true"])[-1] == (3 if descending else 2)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"where": ["nope>1"]}, "there is no column 'nope'; there are score, length"),
        ({"sort": "nope"}, "there is no column 'nope'"),
        ({"where": ["score>red"]}, "score is a number, and 'red' is not"),
        ({"where": ["length=2.5"]}, "length is a number, and '2.5' is not"),
        ({"where": ["finished=maybe"]}, "finished is true or false, and 'maybe' is not"),
        ({"where": ["length>1e400"]}, "length is a number, and '1e400' is not"),
        ({"where": ["length>1e300"]}, "length is a number, and '1e300' is not"),
        ({"where": ["length=nan"]}, "length is a number, and 'nan' is not"),
        ({"where": ["messages~x"]}, "messages has many values in a row, which cannot be compared"),
        ({"sort": "messages"}, "messages has many values in a row, which have no order"),
    ],
)
def test_what_cannot_be_asked_is_said(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        found(**asked)


@pytest.mark.parametrize("text", ["", "score", ">1", "~x"])
def test_what_is_no_condition_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition; write one such as score"):
        Condition.parse(text)


def test_texts_are_read_only_where_they_are_needed() -> None:
    assert SampleQuery(search="x").reads_texts and SampleQuery(sort="prompt").reads_texts
    assert SampleQuery(conditions=[Condition("response", "~", "x")]).reads_texts
    assert not SampleQuery(sort="score", conditions=[Condition("length", ">", "1")]).reads_texts


def test_the_summary_is_of_all_rows_that_match_and_of_finite_values() -> None:
    told = summary(TABLE, matching(TABLE, SampleQuery()))
    assert told["score"] == {"mean": pytest.approx(-1 / 3), "least": -2.5, "most": 1.0}
    assert told["truncated"] == {"mean": pytest.approx(0.4)}
    none = matching(TABLE, SampleQuery(search="nowhere"))
    assert summary(TABLE, none) == {}
