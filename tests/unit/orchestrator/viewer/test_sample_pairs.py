"""Samples of two runs by their prompts."""

from __future__ import annotations

from typing import Any

import pyarrow
import pytest

from orchestrator.viewer.sample_pairs import sample_pairs


def table(prompts: list[str], **columns: list[Any]) -> pyarrow.Table:
    return pyarrow.table({"prompt": prompts, "score": [float(n) for n in range(len(prompts))], **columns})


def test_the_same_prompts_are_side_by_side_in_the_order_of_their_responses() -> None:
    one, other = table(["a", "b", "a", "c", "a"]), table(["x", "a", "a", "b"])
    rows = sample_pairs(one, other).to_pylist()
    assert [(row["row"], row["other_row"], row["prompt"]) for row in rows] == [(0, 1, "a"), (1, 3, "b"), (2, 2, "a")]
    assert [row["difference"] for row in rows] == [1.0, 2.0, 0.0]  # the other's score less the first's
    assert [(row["score"], row["other_score"]) for row in rows] == [(0.0, 1.0), (1.0, 3.0), (2.0, 2.0)]


def test_what_only_one_run_keeps_is_left_out() -> None:
    rows = sample_pairs(table(["a"], kl=[1.0]), table(["a"])).to_pylist()
    assert rows == [{"row": 0, "other_row": 0, "prompt": "a", "score": 0.0, "other_score": 0.0, "difference": 0.0}]


def test_without_texts_the_rows_of_the_prompts_are_compared() -> None:
    one = pyarrow.table({"prompt_id": [4, 5], "score": [1.0, 2.0]})
    other = pyarrow.table({"prompt_id": [5, 6], "score": [3.0, 4.0], "prompt": ["a", "b"]})
    (row,) = sample_pairs(one, other).to_pylist()
    assert (row["prompt_id"], row["score"], row["other_score"]) == (5, 2.0, 3.0)
    with pytest.raises(ValueError, match="name no prompts"):
        sample_pairs(one, pyarrow.table({"score": [1.0]}))


def test_no_prompt_in_both() -> None:
    assert sample_pairs(table(["a"]), table(["b"])).num_rows == 0
