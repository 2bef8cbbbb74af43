"""What a reward that is no model is asked with, and the check of its answer."""

from __future__ import annotations

import reprlib
from typing import Any

import torch
from torch import Tensor

from roles.batch import Responses
from roles.errors import RewardError
from roles.functions.child import CallFailed
from roles.functions.child_program import is_finite_float32


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


def openrlhf_arguments(answered: Responses, label: str | None) -> dict[str, Any]:
    """What a reward for OpenRLHF is given; `label`: the column of the labels. RewardError if there is none such."""
    if label is not None and label not in answered.columns:
        known = ", ".join(answered.columns) or "none"
        raise RewardError(f"reward.label={label} is no column of the prompts, which have {known}; change it")
    return {
        "query": [prompt + response for prompt, response in zip(answered.prompts, answered.responses, strict=True)],
        "prompts": answered.prompts,
        "labels": [""] * len(answered) if label is None else answered.columns[label],
    }


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
