"""Dynamic sampling (DAPO, arXiv 2503.14476, equation 11): prompts whose responses all have the same score teach nothing
where responses to a prompt are compared, so others are drawn in their place.

The scored samples of a step flow in; all that was generated for it, and which of it is trained on, flows out.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orchestrator.config.ppo import PpoConfig
from orchestrator.config.scores import MaskTruncated, NoLengthPenalty
from orchestrator.ppo.scores import RunningScale, shape_scores
from roles.batch import Prompts, Scored


@dataclass(frozen=True, slots=True)
class Generated:
    """All samples that were generated for a step."""

    scored: Scored
    """In the order in which their prompts were drawn; the responses to a prompt are neighbours."""
    seeds: list[int | None]
    """Sampling seed of each sample."""
    drawn: list[int]
    """Of each prompt, its row among the training prompts."""
    rows: list[int]
    """Samples that are trained on, in rising order."""
    rounds: int = 0
    """How often prompts were drawn; 0 without dynamic sampling."""

    @property
    def batch(self) -> Scored:
        """The samples that are trained on."""
        return self.scored if len(self.rows) == len(self.scored) else self.scored.select(self.rows)

    @property
    def left_out(self) -> set[int]:
        """Samples that are not trained on, because their group has no spread."""
        return set(range(len(self.scored))) - set(self.rows)

    def metrics(self) -> dict[str, float]:
        """How much of the sampling was of use, by the names of `orchestrator.metrics`."""
        return {
            "sampling/rounds": float(self.rounds),
            "sampling/left_out_fraction": len(self.left_out) / len(self.scored),
            "sampling/score_mean": float(self.scored.scores.mean()),
        }


def refill(
    first: Generated,
    more: Callable[[int], Generated],
    spread: Callable[[Scored], Tensor],
    *,
    prompts: int,
    rounds: int,
) -> Generated:
    """Draw prompts in place of those whose responses all have the same score, until there are `prompts` with a spread,
    or prompts were drawn in `rounds` rounds. If they do not suffice, some without a spread fill the batch: its size
    never changes.

    Args:
        more: samples of so many other prompts.
        spread: samples → whether the scores of each prompt's responses differ, bool `[prompts]`.
    """
    found, each = replace(first, rounds=1), len(first.scored) // prompts
    for _ in range(rounds - 1):
        missing = prompts - int(spread(found.scored).sum())
        if missing <= 0:
            break
        added = more(missing)
        found = Generated(
            Scored.concatenate([found.scored, added.scored]),
            [*found.seeds, *added.seeds],
            [*found.drawn, *added.drawn],
            [],
            found.rounds + 1,
        )
    differs = spread(found.scored).tolist()
    best = sorted(range(len(differs)), key=lambda group: (not differs[group], group))[:prompts]
    return replace(found, rows=[group * each + response for group in sorted(best) for response in range(each)])


def has_spread(scored: Scored, each: int, ppo: PpoConfig, scale: RunningScale) -> Tensor:
    """Whether the scores of a prompt's `each` responses differ, bool `[prompts]`: clipped, with the penalty of a
    truncated response in place of its score, and without responses that are not trained on.

    The length penalty does not count: lengths nearly always differ, and the paper asks what is right.

    Args:
        scale: statistics of all scores before these; it is not changed.
    """
    ahead, plain = deepcopy(scale), ppo.score.model_copy(update={"length": NoLengthPenalty()})
    ahead.update(scored.scores)
    scores = shape_scores(scored.scores, scored.rollouts, ppo.model_copy(update={"score": plain}), ahead)
    cut = ~scored.rollouts.finished if isinstance(ppo.truncated, MaskTruncated) else torch.zeros_like(scores).bool()
    highest, lowest = (scores.masked_fill(cut, edge).reshape(-1, each) for edge in (-torch.inf, torch.inf))
    return highest.amax(1) > lowest.amin(1)


def generated(prompts: Prompts, drawn: list[int], scored: Scored) -> Generated:
    """All of it is trained on."""
    return Generated(scored, list(prompts.seeds), list(drawn), list(range(len(scored))))
