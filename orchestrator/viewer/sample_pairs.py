"""Two runs side by side: the samples of a step of each flow in, those to the same prompt flow out as one row. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow
import pyarrow.compute as pc

PAIRED = ("score", "kl", "length", "finished", "response")
"""Columns of which a pair has both: the second run's are called `other_score` and so on."""


def sample_pairs(one: pyarrow.Table, other: pyarrow.Table) -> pyarrow.Table:
    """A row for each pair: `prompt`, the columns `PAIRED` of both, `difference` (the second's score less the first's),
    and where each stands (`row`, `other_row`). The first response to a prompt is paired with the first one, and so on.

    Prompts are the same if their texts are; where a run keeps no texts, if their rows among the training prompts are.
    """
    by = "prompt" if "prompt" in one.column_names and "prompt" in other.column_names else "prompt_id"
    if by not in one.column_names or by not in other.column_names:
        raise ValueError("these samples name no prompts by which they could be paired (report.samples)")
    waiting: dict[Any, list[int]] = defaultdict(list)
    for row, prompt in enumerate(other[by].to_pylist()):
        waiting[prompt].append(row)
    turns = {prompt: iter(rows) for prompt, rows in waiting.items()}
    found = [(row, next(turns.get(prompt, iter(())), None)) for row, prompt in enumerate(one[by].to_pylist())]
    rows = pyarrow.array([row for row, its in found if its is not None], pyarrow.int64())
    others = pyarrow.array([its for _, its in found if its is not None], pyarrow.int64())
    columns: dict[str, Any] = {"row": rows, "other_row": others, by: one[by].take(rows)}
    for name in PAIRED:
        if name in one.column_names and name in other.column_names:
            columns |= {name: one[name].take(rows), f"other_{name}": other[name].take(others)}
    if "score" in columns:
        numbers = [columns[name].cast(pyarrow.float64()) for name in ("other_score", "score")]
        columns["difference"] = pc.subtract(*numbers)
    return pyarrow.table(columns)
