"""What a reward that is no model is asked with, and the check of its answer."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from roles.batch import Responses
from roles.errors import RewardError
from roles.functions.child import CallFailed
from roles.functions.child_program import METRIC_NAME, is_finite_float32
from roles.rows import Batch
from roles.text.policy_text import PolicyText

Decode = Callable[[Sequence[int]], str]
"""Token ids → text."""


@dataclass(frozen=True, slots=True)
class RowScores(Batch):
    """What a reward that is no model says of each response.

    Example:
        scores = [1.0, 0.0]
        named  = [{"polite": 1.0}, {"polite": 0.5}]
    """

    scores: Tensor
    """float32 `[batch]`."""
    named: list[dict[str, float]]
    """Named numbers beside the score; all rows have the same names."""


class NamingScorer(Protocol):
    """A scorer that may say more than a number: a function, a service."""

    def row_scores(self, rows: Any) -> RowScores:
        """The scores, and named numbers beside them. `rows`: `Responses`."""


def arguments_of(answered: Responses) -> dict[str, Any]:
    """What a reward is given, as plain Python values."""
    rows = zip(answered.token_ids, answered.response_mask, strict=True)
    return {
        "prompts": answered.prompts,
        "responses": answered.responses,
        "response_token_ids": [tokens[mask].tolist() for tokens, mask in rows],
        "finished": answered.finished.tolist(),
        "columns": answered.columns,
    }


def decode_of(policy: PolicyText | None) -> Decode | None:
    """What turns the tokens of a policy into text with all special tokens; None without one."""
    return None if policy is None else partial(policy.tokenizer().decode, skip_special_tokens=False)


def openrlhf_arguments(answered: Responses, label: str | None, decode: Decode | None) -> dict[str, Any]:
    """What a reward for OpenRLHF is given. RewardError if there is no column `label`.

    Args:
        label: the column of the labels.
        decode: token ids → text with all special tokens, as OpenRLHF decodes the query: it ends with EOS if the
            response ended itself; None: there are no tokens of a policy, and the query is what the texts say.
    """
    if label is not None and label not in answered.columns:
        known = ", ".join(answered.columns) or "none"
        raise RewardError(f"reward.label={label} is no column of the prompts, which have {known}; change it")
    if decode is None:
        query = [prompt + response for prompt, response in zip(answered.prompts, answered.responses, strict=True)]
    else:
        rows = zip(answered.token_ids.tolist(), answered.lengths.tolist(), strict=True)
        query = [decode(tokens[:length]) for tokens, length in rows]
    return {
        "query": query,
        "prompts": answered.prompts,
        "labels": [""] * len(answered) if label is None else answered.columns[label],
    }


def checked_answer(answer: Mapping[str, Any], count: int) -> RowScores:
    """`scores` and `metrics` of an answer, or CallFailed that says what is wrong with them."""
    scores, named = checked_scores(answer["scores"], count), answer["metrics"]
    if not isinstance(named, Mapping):
        raise CallFailed(f"the metrics are {reprlib.repr(named)}, not names with a list of numbers each")
    columns = {name: _checked_numbers(name, numbers, count) for name, numbers in named.items()}
    return RowScores(scores, [{name: numbers[row] for name, numbers in columns.items()} for row in range(count)])


def _checked_numbers(name: str, numbers: Any, count: int) -> list[float]:
    if not re.fullmatch(METRIC_NAME, name):
        raise CallFailed(f"a metric is called {name[:80]!r}; take at most 60 letters, digits and . _ - @ /")
    if not isinstance(numbers, list):
        raise CallFailed(f"metric {name} is {reprlib.repr(numbers)}, not a list with a number for each response")
    if len(numbers) != count:
        raise CallFailed(f"metric {name} has {len(numbers)} numbers for {count} responses; return one for each")
    for row, number in enumerate(numbers):
        if not isinstance(number, (int, float)) or not is_finite_float32(number):
            raise CallFailed(f"metric {name} of response {row} is {reprlib.repr(number)}, not a finite number")
    return [float(number) for number in numbers]


def checked_scores(scores: Any, count: int) -> Tensor:
    """float32 `[count]`, or CallFailed that says what is wrong with the answer."""
    if not isinstance(scores, list):
        raise CallFailed(f"the scores are {type(scores).__name__}, not a list of numbers")
    if len(scores) != count:
        raise CallFailed(f"{len(scores)} scores for {count} responses; return one for each, in their order")
    for row, score in enumerate(scores):
        if isinstance(score, bool) or not isinstance(score, (int, float)) or not is_finite_float32(score):
            raise CallFailed(f"score {row} is {reprlib.repr(score)}, not a finite number (of float32, at most 3.4e38)")
    return torch.tensor(scores, dtype=torch.float32)
