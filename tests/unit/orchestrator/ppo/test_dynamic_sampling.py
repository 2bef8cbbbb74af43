"""Which prompts teach nothing where responses are compared: those to which every response gets the advantage 0."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.ppo.dynamic_sampling import has_spread
from orchestrator.ppo.scores import RunningScale, shape_scores
from roles.batch import Scored
from tests.unit.orchestrator.ppo.test_experience import make_ppo, make_scored
from tests.unit.orchestrator.ppo.whole_batch import to_experience

EACH = 2
SCORES, CUT = (0.0, 1.0, 7.0, 9.0), (False, True)
GROUPS = [[one, other] for one, other in itertools.product(itertools.product(SCORES, CUT), repeat=2)]
"""Every two responses with these scores, whole or cut."""


def every_group() -> Scored:
    scores, cut = zip(*itertools.chain.from_iterable(GROUPS), strict=True)
    scored = make_scored([(2, 3)] * len(scores))
    rollouts = replace(scored.rollouts, finished=~torch.tensor(cut))
    return replace(scored, rollouts=rollouts, scores=torch.tensor(scores))


def learned(scored: Scored, ppo: Any, scale: RunningScale) -> Tensor:
    """Whether GRPO trains on the group."""
    scores = shape_scores(scored.scores, scored.rollouts, ppo, scale)
    experience, _ = to_experience(scored, 0.0, ppo, responses_per_prompt=EACH, scores=scores)
    return (experience.actor.advantages != 0).any(1).view(-1, EACH).any(1)


@pytest.mark.parametrize("score", [{}, {"clip": 5.0}, {"normalise": True, "clip": 1.0}])
@pytest.mark.parametrize("truncated", [{"type": "score"}, {"type": "penalty", "score": 1.0}, {"type": "mask"}])
def test_a_group_has_a_spread_where_something_is_learned_from_it(
    truncated: dict[str, Any], score: dict[str, Any]
) -> None:
    ppo = make_ppo(advantage={"type": "grpo"}, truncated=truncated, score=score)
    scored, before, after = every_group(), RunningScale(), RunningScale()
    before.update(torch.tensor([0.0, 20.0, 40.0]))
    after.load_state_dict(before.state_dict())
    after.update(scored.scores)
    found = has_spread(scored, EACH, ppo, before)
    assert found.tolist() == learned(scored, ppo, after).tolist()
    assert 0 < int(found.sum()) < len(GROUPS) and before.mean == 20.0


def test_lengths_alone_are_no_spread() -> None:
    scored = replace(make_scored([(2, 3), (2, 5)], truncated=()), scores=torch.ones(2))
    ppo = make_ppo(advantage={"type": "grpo"}, score={"length": {"type": "linear", "per_token": 0.1}})
    assert has_spread(scored, EACH, ppo, RunningScale()).tolist() == [False]


def test_scores_of_a_first_batch_are_not_clipped_in_other_units() -> None:
    scored = replace(make_scored([(2, 3)] * 2, truncated=()), scores=torch.tensor([100.0, 101.0]))
    ppo = make_ppo(advantage={"type": "grpo"}, score={"normalise": True, "clip": 5.0})
    assert has_spread(scored, EACH, ppo, RunningScale()).tolist() == [True]
