"""The batch of a step in processes of its own, the *keepers*, each with one shard of it: rows go from the engines to a
keeper, to the roles that score them, back to the keeper, and to the ranks that learn from them, through Ray's object
store. The driver has lengths, scores and other small numbers of each row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from cluster.ranks.calls import Call
from cluster.ranks.role_group import RoleGroup
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.scores import MaskTruncated
from orchestrator.data.demonstrations import PtxSource
from orchestrator.groups.canary import EngineGap, SeenSamples, seen_rows, some_of_each
from orchestrator.groups.kept_rows import KeeperRows, keeper_rows
from orchestrator.groups.scoring import Roles
from orchestrator.groups.spread import wait_for
from orchestrator.ppo.kept_scoring import KeptScoring, ranks_of_keepers
from orchestrator.ppo.mini_batches import Home, ShareRows, planned_rows, pretraining_shares, schedule_of, share_rows
from orchestrator.ppo.row_shard import RowShard
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.stats import RowFacts, TokenCounts, named_numbers
from orchestrator.run.phase_clock import Clock
from roles.actor import Actor, ActorStats
from roles.batch import Prompts, Scored
from roles.config.rollout import RolloutConfig
from roles.critic import Critic, CriticStats
from roles.rollout_facts import RolloutFacts

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class KeptGaps:
    """The gap of each engine, measured where the rows are."""

    found: dict[int, EngineGap]
    gaps: Tensor | None = None
    """None: `ExperienceStats` has them."""

    def by_engine(self, how: RolloutConfig) -> dict[int, EngineGap]:
        """The gap of each engine that has generated a token."""
        return self.found


@dataclass(slots=True)
class KeptBatch:
    """The scored rows of a step."""

    keepers: RoleGroup[RowShard]
    rows: Sequence[KeeperRows]
    deadline_s: float
    """Of a call to the keepers."""
    drawn: list[int]
    """Of each prompt, its row among the training prompts."""
    rollouts: RolloutFacts
    facts: RowFacts
    """What the statistics need of each row."""
    seen: SeenSamples

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def shards(self) -> KeptBatch:
        """A shard of each keeper: `orchestrator.ppo.shards.Shards`."""
        return self

    @property
    def sizes(self) -> Sequence[int]:
        """Rows of each."""
        return [len(own.rows) for own in self.rows]

    def map(self, method: Callable[..., T], each: Iterable[Any], *common: Any) -> list[T]:
        """Call `method` on every shard, with its own of `each`; what they answer."""
        return self.keepers.map(method, list(each), *common).result(self.deadline_s)

    def sampling_metrics(self) -> dict[str, float]:
        """Nothing: dynamic sampling is refused."""
        return {}

    def baselines(self, ppo: PpoConfig, scale: RunningScale, each: int) -> None:
        """None: estimators that need greedy responses are refused."""

    @property
    def sampled_tokens(self) -> TokenCounts:
        """Of all samples, which are those of the batch."""
        return self.trained_tokens

    @property
    def trained_tokens(self) -> TokenCounts:
        """Of the batch."""
        return TokenCounts(self.rollouts.sizes, self.rollouts.generated)

    def some(self, rows: Sequence[int]) -> Scored:
        """Those rows of the batch, in that order."""
        rising = sorted(rows)
        found = Scored.concatenate(self.map(RowShard.some, [within(rising, own.rows) for own in self.rows]))
        return found.select([rising.index(row) for row in rows])

    def shared_out(self, roles: Roles, ppo: PpoConfig, *, seed: int) -> KeptShares:
        """The shares of the actor's and of the critic's ranks."""
        cut = ~self.rollouts.finished if isinstance(ppo.truncated, MaskTruncated) else torch.zeros(len(self)).bool()
        learned = (~cut).tolist()
        (actor, actors), (critic, critics) = (
            self._planned(len(group), learned, schedule_of(ppo, seed)) if group else ([], [range(0)] * len(self.rows))
            for group in (roles.actor, roles.critic)
        )
        trained = planned_rows(actor, learned, ppo.epochs)
        shares = KeptShares(actor, critic, trained & planned_rows(critic, learned, ppo.epochs) if critic else trained)
        for number, own in enumerate(self.rows):
            shares.cut(self.keepers, number, own.rows, actors[number], critics[number])
        return shares

    def _planned(
        self, ranks: int, learned: Sequence[bool], schedule: Mapping[str, Any]
    ) -> tuple[list[ShareRows], list[range]]:
        """The rows of each rank of a group; of each keeper, the ranks that learn from its rows: all, or its own as long
        as they have a row in each optimizer step."""
        lengths, own = self.rollouts.sizes.tolist(), ranks_of_keepers(ranks, self.rows)
        if own[0] != own[-1]:
            homes = [Home(one.rows, part) for one, part in zip(self.rows, own, strict=True)]
            shares = share_rows(lengths, learned, ranks=ranks, homes=homes, **schedule)
            if all(step for share in shares for step in share.steps):
                return shares, own
        return share_rows(lengths, learned, ranks=ranks, **schedule), [range(ranks)] * len(self.rows)


@dataclass(slots=True)
class KeptShares:
    """What each rank is sent: which of its rows make each step, and references to the rows."""

    actor: list[ShareRows]
    critic: list[ShareRows]
    """Empty without a critic."""
    trained: set[int]
    """Rows of the batch that all trained roles get once in each epoch."""
    of_actor: list[list[Any]] = field(init=False)
    """Of each rank, references to its rows, in rising order."""
    of_critic: list[list[Any]] = field(init=False)
    cutting: list[Call[None]] = field(default_factory=list)
    """The keepers' calls, for whose rows the updates wait."""

    def __post_init__(self) -> None:
        self.of_actor, self.of_critic = [[] for _ in self.actor], [[] for _ in self.critic]

    @property
    def taught(self) -> bool:
        """Whether there is an optimizer step: those of all ranks, and of the critic, have the same rows."""
        return bool(self.actor[0].steps)

    def cut(self, keepers: RoleGroup[RowShard], number: int, rows: range, actors: range, critics: range) -> None:
        """Have a keeper, which has the batch's `rows`, cut what each of these ranks needs of them."""
        places, wanted = list[list[Any]](), list[list[list[int]]]()
        for shares, found, ranks in ((self.actor, self.of_actor, actors), (self.critic, self.of_critic, critics)):
            own = {rank: within(shares[rank].rows, rows) for rank in ranks}
            wanted.append([part for part in own.values() if part])
            places += [found[rank] for rank, part in own.items() if part]
        if places:
            call, made = keepers.scatter(number, RowShard.share, len(places), *wanted)
            self.cutting.append(call)
            for place, reference in zip(places, made, strict=True):
                place.append(reference)

    def update_critic(self, critic: RoleGroup[Critic]) -> Call[CriticStats]:
        """Begin the optimizer steps of the critic."""
        each = zip(self.critic, self.of_critic, strict=True)
        return critic.map_each(Critic.update_from, [(share.steps, *rows) for share, rows in each])

    def update_actor(
        self, actor: RoleGroup[Actor], texts: PtxSource | None, coefficient: float, config: RunConfig
    ) -> Call[ActorStats]:
        """Begin the optimizer steps of the actor; with a pre-training loss, on fresh rows of its data, `texts`, too.
        `coefficient`: of the KL."""
        ptx, beside, ranks = config.ppo.ptx, list[Any]([None] * len(actor)), len(actor)
        if ptx is not None and texts is not None:
            steps = len(self.actor[0].steps)
            beside = pretraining_shares(texts, ptx.sequences_per_mini_batch, steps=steps, ranks=ranks)
        each = zip(self.actor, beside, self.of_actor, strict=True)
        return actor.map_each(Actor.update_from, [(share.steps, own, coefficient, *rows) for share, own, rows in each])


def kept_batch(
    roles: Roles, keepers: RoleGroup[RowShard], prompts: Prompts, state: TrainState, config: RunConfig, clock: Clock
) -> KeptBatch:
    """Scored responses to `prompts`."""
    each, deadline_s = config.rollout.responses_per_prompt, config.deadlines.score_s
    engines, kept = len(roles.policy.engines), len(keepers)
    rows = keeper_rows(len(prompts) // each, each, engines=engines, keepers=kept)
    scoring = KeptScoring(roles, keepers, rows, prompts)
    with clock("generate"):
        for own in roles.policy.stream_kept(prompts, rows, version=state.version):
            scoring.start(own)
    with clock("score"):
        wait_for(scoring.spreads, deadline_s, roles.policy.recovery, scoring.cutting)
        whole = RolloutFacts.concatenate([scoring.facts[keeper] for keeper in range(kept)])
        facts = filled(scoring, whole, deadline_s)
        batch = KeptBatch(keepers, rows, deadline_s, list(state.prompts.drawn), whole, facts, KeptGaps({}))
        if config.canary.enabled:
            batch.seen = seen_of(batch, roles, config)
    return batch


def seen_of(batch: KeptBatch, roles: Roles, config: RunConfig) -> SeenSamples:
    """What the actor says of the rows; where it does not compute the log-probabilities of all of them, of a few."""
    makers = roles.policy.made_by
    if not roles.recomputes:
        rows = some_of_each(makers)
        return seen_rows(roles, batch.some(rows).rollouts, rows)
    found: dict[int, list[EngineGap]] = {}
    own = [makers[part.rows.start : part.rows.stop] for part in batch.rows]
    for gaps in batch.map(RowShard.gaps, own, config.rollout):
        for engine, gap in gaps.items():
            found.setdefault(engine, []).append(gap)
    return KeptGaps({engine: EngineGap.of(gaps) for engine, gaps in found.items()})


def filled(scoring: KeptScoring, rollouts: RolloutFacts, deadline_s: float) -> RowFacts:
    """Give the keepers what the passes over their rows have computed; the facts of all rows, those of `rollouts`."""
    given, all_named = [], []
    for keeper in range(len(scoring.rows)):
        scores, answers = scoring.scores(keeper), scoring.answers(keeper)
        named = scores.named(deadline_s)
        parts = {name: answer.parts for name, answer in answers.items()}
        references = [ref for answer in answers.values() for ref in answer.call.refs]
        given.append((*scores.result(deadline_s), named, parts, *references))
        all_named += named
    scoring.keepers.map_each(RowShard.fill, given).result(deadline_s)
    scores_of_all, disagreement = (torch.cat([own[part] for own in given]) for part in (0, 1))
    numbers = [counted | said for counted, said in zip(rollouts.counted, all_named, strict=True)]
    named_rows = named_numbers(numbers, scoring.prompts.texts)
    return RowFacts(rollouts.generated, rollouts.finished, scores_of_all, disagreement, named_rows)


def within(rows: Sequence[int], own: range) -> list[int]:
    """Of `rows` of the batch, in rising order, those that `own` has, by their places in it."""
    return [row - own.start for row in rows[bisect_left(rows, own.start) : bisect_left(rows, own.stop)]]
