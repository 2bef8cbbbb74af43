"""What a token can be coloured by: a sample's row flows in, a number for each token and what it means flow out. Pure.

What was not recorded is said, with the setting that records it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SETTING = "report.samples.token_columns"
"""The key that says what is kept of each token."""


@dataclass(frozen=True, slots=True)
class TokenNumber:
    """A number of each token. Example: `TokenNumber("value", "value", "", "…", ("values",), "both", first)`."""

    key: str
    label: str
    unit: str
    about: str
    needs: tuple[str, ...]
    """Columns of the step's file from which it is computed; none: no setting records it."""
    sign: Literal["both", "positive"]
    """Whether its colours have two sides."""
    of: Callable[..., float]
    """The number of a token from those of the columns."""


def _k3(policy: float, reference: float) -> float:
    """The KL estimate of one token that is never negative (Schulman's k3), capped where exp would overflow."""
    log_ratio = min(reference - policy, 700.0)
    return math.expm1(log_ratio) - log_ratio


def _itself(value: float) -> float:
    return value


TOKEN_NUMBERS = (
    TokenNumber(
        *("log_ratio", "log-ratio to the reference", "nats"),
        "log π − log π_ref before the update: above 0 the policy likes the token better than the reference does; the "
        "sum over a response is its KL (k1)",
        *(("old_logprobs", "reference_logprobs"), "both", lambda policy, reference: policy - reference),
    ),
    TokenNumber(
        *("kl", "KL to the reference (k3)", "nats"),
        "estimate of the KL at the token that is never negative",
        *(("old_logprobs", "reference_logprobs"), "positive", _k3),
    ),
    TokenNumber(
        *("advantage", "advantage", ""),
        "as it was trained on: above 0 the token was better than expected",
        *(("advantages",), "both", _itself),
    ),
    TokenNumber(*("value", "value", ""), "what the critic expected here", *(("values",), "both", _itself)),
    TokenNumber(*("return", "return", ""), "what the critic was trained to expect", *(("returns",), "both", _itself)),
    TokenNumber(
        *("surprisal", "surprisal", "nats"),
        "−log π before the update: how unlikely the token was",
        *(("old_logprobs",), "positive", lambda policy: -policy),
    ),
    TokenNumber(
        *("gap", "engine − trainer", "nats"),
        "vLLM's log-probability less the trainer's: rounding, or a fault",
        *(("rollout_logprobs", "old_logprobs"), "both", lambda engine, trainer: engine - trainer),
    ),
    TokenNumber("entropy", "entropy", "nats", "the policy's entropy at the token", (), "positive", _itself),
)
"""In the order in which they are offered."""


def token_numbers(row: Mapping[str, Any], nothing: str = "") -> list[dict[str, Any]]:
    """For each of `TOKEN_NUMBERS` what it is, and either `values` (a number for each token after the prompt, None for
    what the policy did not generate) or `missing`: why there are none.

    Args:
        nothing: why nothing at all is recorded of this place's tokens; empty: it is a step's file.
    """
    found = []
    for one in TOKEN_NUMBERS:
        told: dict[str, Any] = {
            "key": one.key,
            "label": one.label,
            "unit": one.unit,
            "about": one.about,
            "sign": one.sign,
        }
        columns = [row.get(name) for name in one.needs]
        missing = [name for name, column in zip(one.needs, columns, strict=True) if column is None]
        if not one.needs:
            told["missing"] = "no setting records it; the surprisal comes closest"
        elif nothing or missing:
            told["missing"] = nothing or f"not recorded; {SETTING}: [{', '.join(one.needs)}] records it"
        else:
            told["values"] = _values(one, columns, row.get("generated"))
        found.append(told)
    return found


def _values(one: TokenNumber, columns: Sequence[Any], generated: Sequence[bool] | None) -> list[float | None]:
    values = [one.of(*numbers) for numbers in zip(*columns, strict=True)]
    ours = generated or [True] * len(values)
    pairs = zip(values, ours, strict=True)
    return [value if made and math.isfinite(value) else None for value, made in pairs]
