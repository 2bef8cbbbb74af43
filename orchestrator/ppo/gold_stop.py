"""The best evaluation of a run by its gold score, and the end of the run after it: scores flow in, steps and texts flow
out. Pure.

The gold score is the judge's. Training raises the proxy score, also when the gold score falls (Gao et al., arXiv
2210.10760), so the proxy decides nothing here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

GoldScores = Mapping[int, float]
"""Step → mean gold score of its evaluation. Example: `{0: 0.1, 4: 0.5, 8: 0.3}`."""


def best_steps(scores: GoldScores, count: int) -> list[int]:
    """The steps of the `count` highest scores, highest first, of equal ones the first step; scores that are no numbers
    do not count."""
    numbers = {step: score for step, score in scores.items() if not math.isnan(score)}
    return sorted(numbers, key=lambda step: (-numbers[step], step))[:count]


def best_step(scores: GoldScores) -> int | None:
    """The step of the highest score, of equal ones the first; None if no score is a number."""
    return next(iter(best_steps(scores, 1)), None)


def evaluations_since(scores: GoldScores, step: int) -> list[int]:
    """The steps of the evaluations after `step`."""
    return sorted(later for later in scores if later > step)


def why_end(scores: GoldScores, patience: int | None) -> str:
    """Why the run ends after its newest evaluation; empty: it goes on."""
    best = best_step(scores)
    later = evaluations_since(scores, best) if best is not None else []
    if best is None or patience is None or len(later) < patience:
        return ""
    told = ", ".join(f"{scores[step]:+.3f} at step {step}" for step in later)
    return (
        f"evaluation.stop: the gold score was highest at step {best} ({scores[best]:+.3f}), and patience={patience} is "
        f"spent ({told}); training ends after step {later[-1]}, and the run leaves the models of step {best}"
    )


def first_that_counts(scores: GoldScores, kept: int | None, now: int) -> int:
    """The step from which on evaluations count when a run goes on at step `now`: the best of them must be one whose
    models still exist.

    Args:
        kept: the step of the models that were kept; None if there are none.
    """
    there = {now} if kept is None or kept > now else {now, kept}
    for first in (0, min(there), now):
        best = best_step({step: score for step, score in scores.items() if step >= first})
        if best is None or best in there:
            return first
    raise AssertionError("no step after `now` has an evaluation")
