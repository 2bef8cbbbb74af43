"""A judge's answers in both orders → soft labels, and how far the judge can be trusted. Pure.

JudgeVerdict(forward=0.9, backward=0.4)     the first response is better with (0.9 + 0.6) / 2 = 0.75; consistent
JudgeVerdict(forward=0.9, backward=0.8)     0.55; not consistent: whatever is shown first wins
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.data.record_values import PROBABILITY
from roles.text.sample_tokens import Text


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """What a judge says of two responses, asked in both orders."""

    forward: float | None
    """Probability that what is shown first is better, where that is the first response; None: the judge abstains."""
    backward: float | None
    """The same where the second response is shown first."""

    @property
    def probability(self) -> float | None:
        """Probability that the first response is better: the mean of both orders, in which a preference for a position
        cancels (arXiv 2309.00267, section 2.1.1). None if the judge abstains in one of them."""
        if self.forward is None or self.backward is None:
            return None
        return (self.forward + 1 - self.backward) / 2

    @property
    def consistent(self) -> bool:
        """Whether the same response wins in both orders."""
        if self.forward is None or self.backward is None:
            return False
        return (self.forward - 0.5) * (self.backward - 0.5) < 0


@dataclass(frozen=True, slots=True)
class Reliability:
    """How a judge behaves over many comparisons."""

    compared: int
    """Comparisons whose two questions were answered."""
    abstained: int
    """Of them, those with no answer of A or B in one order or both."""
    agreement: float | None
    """Share of the others in which the same response wins in both orders; None if there are none."""
    position_bias: float | None
    """Mean probability of what is shown first, less one half: 0 is fair, 0.5 always takes the first."""
    first_both_times: float | None
    """Share in which the response that is shown first wins in both orders."""
    second_both_times: float | None
    """Share in which the response that is shown second wins in both orders."""

    @classmethod
    def of(cls, verdicts: Sequence[JudgeVerdict]) -> Reliability:
        """The judge of these comparisons."""
        whole = [(v.forward, v.backward) for v in verdicts if v.forward is not None and v.backward is not None]
        if not whole:
            return cls(len(verdicts), len(verdicts), None, None, None, None)
        size = len(whole)
        return cls(
            compared=len(verdicts),
            abstained=len(verdicts) - size,
            agreement=sum(verdict.consistent for verdict in verdicts) / size,
            position_bias=sum(forward + backward for forward, backward in whole) / (2 * size) - 0.5,
            first_both_times=sum(min(pair) > 0.5 for pair in whole) / size,
            second_both_times=sum(max(pair) < 0.5 for pair in whole) / size,
        )


def labelled_row(
    prompt: Text, responses: tuple[Text, Text], probability: float, minimum: float
) -> dict[str, Any] | None:
    """A row to learn from; None if neither response is better with a probability above `minimum` (at least 0.5)."""
    first, second = responses
    if probability < 0.5:
        first, second, probability = second, first, 1 - probability
    if probability <= minimum:
        return None
    return {"prompt": prompt, "chosen": first, "rejected": second, PROBABILITY: probability}
