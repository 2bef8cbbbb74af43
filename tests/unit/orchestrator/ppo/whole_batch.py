"""The experience of a batch that is one shard."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orchestrator.config.ppo import PpoConfig
from orchestrator.ppo.experience import Experience, Terms
from orchestrator.ppo.row_shard import RowShard
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.shards import OwnShards, make_experience
from orchestrator.ppo.stats import ExperienceStats, RowFacts
from roles.batch import Scored


def to_experience(
    scored: Scored,
    kl_coefficient: float,
    ppo: PpoConfig,
    *,
    scores: Tensor | None = None,
    baselines: Tensor | None = None,
    value_scale: RunningScale | None = None,
    **terms: Any,
) -> tuple[Experience, ExperienceStats]:
    """Training data, its returns in units of the rewards, and statistics."""
    shard = RowShard(scored)
    stats = make_experience(
        OwnShards([shard]),
        RowFacts.of(scored),
        Terms(ppo, kl_coefficient, value_scale=value_scale, **terms),
        scores=scored.scores if scores is None else scores,
        baselines=baselines,
    )
    return shard.experience, stats
