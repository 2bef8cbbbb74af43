"""The rows of a PPO step, wherever they are: the driver asks all shards, and puts together what they answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Protocol, TypeVar

from torch import Tensor

from orchestrator.errors import NotFinite
from orchestrator.ppo.experience import Terms
from orchestrator.ppo.moments import together
from orchestrator.ppo.row_shard import RowShard
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.stats import ExperienceStats, RowFacts, experience_stats

S = TypeVar("S")
T = TypeVar("T")


class Shards(Protocol):
    """The shards of a batch, in the order of its rows."""

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each."""

    def map(self, method: Callable[Concatenate[RowShard, S, ...], T], each: Iterable[S], *common: Any) -> list[T]:
        """Call `method` on every shard, with its own of `each`; what they answer."""


@dataclass(frozen=True, slots=True)
class OwnShards:
    """Shards in this process."""

    shards: Sequence[RowShard]

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each."""
        return [len(shard) for shard in self.shards]

    def map(self, method: Callable[..., T], each: Iterable[Any], *common: Any) -> list[T]:
        """Call `method` on every shard, one after the other."""
        return [method(shard, own, *common) for shard, own in zip(self.shards, each, strict=True)]


def make_experience(
    shards: Shards,
    facts: RowFacts,
    terms: Terms,
    *,
    scores: Tensor,
    baselines: Tensor | None = None,
    value_scale: RunningScale | None = None,
) -> ExperienceStats:
    """Let every shard make its training data; the statistics of the batch.

    Args:
        scores: float `[batch]`: final scores in place of the raw ones (`orchestrator.ppo.scores`).
        baselines: see `estimates`.
        value_scale: takes in the returns, and is then the unit of the critic's targets; None: that of the rewards.

    Raises:
        NotFinite: a score, value or log-probability is not finite.
    """
    sizes = list(shards.sizes)
    found = shards.map(RowShard.reward, [own.clone() for own in scores.split(sizes)], terms)  # a view is sent whole
    for wrong in found:
        if isinstance(wrong, NotFinite):
            raise wrong
    over = together(own for own in found if not isinstance(own, NotFinite))
    own_baselines: Sequence[Tensor | None] = [None] * len(sizes) if baselines is None else baselines.split(sizes)
    sums = together(shards.map(RowShard.estimate, own_baselines, over, terms))
    stats = experience_stats(sums, facts, terms.responses_per_prompt)
    if value_scale is not None:
        value_scale.add(sums.returns)
    shards.map(RowShard.finish, [sums.advantages] * len(sizes), value_scale, terms)
    return stats
