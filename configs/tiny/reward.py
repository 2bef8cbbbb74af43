"""A reward that a small model learns in a few steps: how much of a response is lower-case English letters."""

from __future__ import annotations

import string
from typing import Any


def score(
    prompts: list[str],
    responses: list[str],
    *,
    response_token_ids: list[list[int]],
    finished: list[bool],
    columns: dict[str, list[Any]],
) -> list[float]:
    """The share of characters in a-z, from 0 to 1; an empty response has 0."""
    return [sum(c in string.ascii_lowercase for c in text) / max(len(text), 1) for text in responses]
