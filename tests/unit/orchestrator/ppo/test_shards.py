"""A batch in several shards learns as it does in one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch

from orchestrator.errors import NotFinite
from orchestrator.ppo.experience import Experience, Terms
from orchestrator.ppo.moments import Moments, together
from orchestrator.ppo.row_shard import RowShard
from orchestrator.ppo.scores import RunningScale, shape_scores
from orchestrator.ppo.shards import OwnShards, make_experience
from orchestrator.ppo.stats import ExperienceStats, RowFacts
from roles.batch import Scored
from tests.unit.orchestrator.ppo.test_experience import BETA, make_ppo, make_scored

EACH = 2
KEYS: list[dict[str, Any]] = [
    {},
    {"whiten_advantages": True, "whiten_rewards": True},
    {"advantage": {"type": "grpo"}},
    {"advantage": {"type": "rloo"}, "truncated": {"type": "mask"}},
    {"advantage": {"type": "remax"}},
    {"truncated": {"type": "bootstrap"}, "value": {"normalise": True}},
    {"score": {"normalise": True}},
]


def batch() -> Scored:
    torch.manual_seed(3)
    scored = make_scored([(2, 3), (1, 8), (4, 1), (3, 5), (2, 7), (5, 2), (1, 1), (2, 4)], truncated=(1, 5))
    scored.rollouts.token_ids[torch.arange(9) >= scored.rollouts.lengths[:, None]] = 0  # as rows are padded
    return scored


def made(scored: Scored, sizes: list[int], keys: dict[str, Any]) -> tuple[Experience, ExperienceStats, RunningScale]:
    ppo, scale, units, firsts = (
        make_ppo(**keys),
        RunningScale(),
        RunningScale(),
        [sum(sizes[:n]) for n in range(len(sizes))],
    )
    scale.update(scored.scores)
    units.update(torch.tensor([1.0, 5.0]))
    parts = [scored.select(range(first, first + size)) for first, size in zip(firsts, sizes, strict=True)]
    shards = [RowShard(part, first) for part, first in zip(parts, firsts, strict=True)]
    own = units if ppo.value.normalise else None
    stats = make_experience(
        OwnShards(shards),
        RowFacts.of(scored),
        Terms(ppo, BETA, EACH, scale, own),
        scores=shape_scores(scored.scores, scored.rollouts, ppo, scale),
        baselines=torch.linspace(-1, 1, len(scored)) if ppo.advantage.needs_greedy else None,
        value_scale=own,
    )
    actor = type(shards[0].experience.actor).concatenate([shard.experience.actor for shard in shards])
    critic = type(shards[0].experience.critic).concatenate([shard.experience.critic for shard in shards])
    return Experience(actor, critic), stats, units


@pytest.mark.parametrize("keys", KEYS, ids=str)
@pytest.mark.parametrize("sizes", [[2, 6], [4, 2, 2], [2, 2, 2, 2]], ids=str)
def test_shards_make_the_experience_and_the_statistics_of_the_whole_batch(
    keys: dict[str, Any], sizes: list[int]
) -> None:
    scored = batch()
    whole, stats, units = made(scored, [len(scored)], keys)
    parts, theirs, their_units = made(scored, sizes, keys)
    for one, other in ((whole.actor, parts.actor), (whole.critic, parts.critic)):
        for name in (f.name for f in fields(one)):
            torch.testing.assert_close(getattr(other, name), getattr(one, name), atol=1e-6, rtol=1e-6)
    assert theirs.metrics() == pytest.approx(stats.metrics(), rel=1e-9, abs=1e-9)
    assert their_units.state_dict() == pytest.approx(units.state_dict())


def test_a_number_that_is_not_finite_is_told_by_its_row_of_the_batch() -> None:
    scored = batch()
    scored.values[6, 1] = torch.nan
    with pytest.raises(NotFinite, match=r"values are not finite in rows \[6\] of the batch \(1 of 4;"):
        made(scored, [4, 4], {})


def test_moments_of_parts_are_those_of_all() -> None:
    numbers = torch.linspace(-3, 9, 100).square()
    parts = [Moments.of(part) for part in numbers.split([1, 0, 60, 39])]
    found, mask = together(parts), torch.rand(10, 10) < 0.5
    assert found.count == 100
    assert found.mean == pytest.approx(float(numbers.double().mean()))
    assert found.variance == pytest.approx(float(numbers.double().var(correction=0)))
    masked, wanted = Moments.where(numbers.view(10, 10), mask), Moments.of(numbers.view(10, 10)[mask])
    assert (masked.count, masked.mean) == (wanted.count, pytest.approx(wanted.mean))
    assert masked.squares == pytest.approx(wanted.squares)
    assert together([Moments(), Moments()]) == Moments()
