"""The gold judge of `configs/smoke.yaml`: VADER's sentiment of a response (Hutto and Gilbert, 2014).

It stands for the human, as the synthetic gold model does in Gao et al., arXiv 2210.10760.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def score(
    prompts: list[str],
    responses: list[str],
    *,
    response_token_ids: list[list[int]],
    finished: list[bool],
    columns: dict[str, list[Any]],
) -> list[float]:
    """VADER's compound score of each response: from -1 (most negative) to 1 (most positive), 0 without feeling."""
    return [float(_analyzer().polarity_scores(response)["compound"]) for response in responses]


def score_of_whole(
    prompts: list[str],
    responses: list[str],
    *,
    response_token_ids: list[list[int]],
    finished: list[bool],
    columns: dict[str, list[Any]],
) -> list[float]:
    """The same, but -1 for a response that was cut: to rank responses that a model shall imitate."""
    scores = score(prompts, responses, response_token_ids=response_token_ids, finished=finished, columns=columns)
    return [number if whole else -1.0 for number, whole in zip(scores, finished, strict=True)]


def score_of_fresh_words(
    prompts: list[str],
    responses: list[str],
    *,
    response_token_ids: list[list[int]],
    finished: list[bool],
    columns: dict[str, list[Any]],
) -> list[float]:
    """The same, times the share of words that were not said before: nobody is pleased by the same word again and
    again."""
    scores = score(prompts, responses, response_token_ids=response_token_ids, finished=finished, columns=columns)
    spoken = [re.findall(r"[^\W\d_]+", response.lower()) for response in responses]
    return [number * len({*words}) / max(len(words), 1) for number, words in zip(scores, spoken, strict=True)]
