"""The gold judge of `configs/smoke.yaml`: VADER's sentiment of a response (Hutto and Gilbert, 2014).

It stands for the human, as the synthetic gold model does in Gao et al., arXiv 2210.10760.
"""

from __future__ import annotations

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
