"""The batch of a step in processes of its own, the *keepers*, each with one shard of it: rows go from the engines to a
keeper, to the roles that score them, back to the keeper, and to the ranks that learn from them, through Ray's object
store. The driver has lengths, scores and other small numbers of each row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from cluster.ranks.calls import Call
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ROLES
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.scores import MaskTruncated
from orchestrator.data.demonstrations import PtxSource
from orchestrator.groups.canary import EngineGap, SeenSamples, seen_rows, some_of_each
from orchestrator.groups.kept_rows import KeeperRows, KeptRows, keeper_rows
from orchestrator.groups.reward import Scores
from orchestrator.groups.scoring import Roles, class_of
from orchestrator.groups.spread import Spread, wait_for
from orchestrator.ppo.mini_batches import ShareRows, planned_rows, pretraining_shares, schedule_of, share_rows
from orchestrator.ppo.row_shard import RowShard, ScoringPass
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.stats import RowFacts, TokenCounts, named_numbers
from orchestrator.run.phase_clock import Clock
from roles.actor import Actor, ActorStats
from roles.batch import Prompts, Rollouts, Scored, Sequences
from roles.config.rollout import RolloutConfig
from roles.critic import Critic, CriticStats
from roles.packing import balance
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
        lengths, learned = self.rollouts.sizes.tolist(), (~cut).tolist()
        schedule = schedule_of(ppo, seed)
        actor = share_rows(lengths, learned, ranks=len(roles.actor), **schedule)
        critic = share_rows(lengths, learned, ranks=len(roles.critic), **schedule) if roles.critic else []
        trained = planned_rows(actor, learned, ppo.epochs)
        shares = KeptShares(actor, critic, trained & planned_rows(critic, learned, ppo.epochs) if critic else trained)
        for number, own in enumerate(self.rows):
            shares.cut(self.keepers, number, own.rows)
        return shares


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

    def __post_init__(self) -> None:
        self.of_actor, self.of_critic = [[] for _ in self.actor], [[] for _ in self.critic]

    @property
    def taught(self) -> bool:
        """Whether there is an optimizer step: those of all ranks, and of the critic, have the same rows."""
        return bool(self.actor[0].steps)

    def cut(self, keepers: RoleGroup[RowShard], number: int, rows: range) -> None:
        """Have a keeper, which has the batch's `rows`, cut what each rank needs of them."""
        places = list[list[Any]]()
        wanted: list[list[list[int]]] = []
        for shares, found in ((self.actor, self.of_actor), (self.critic, self.of_critic)):
            own = [within(share.rows, rows) for share in shares]
            wanted.append([part for part in own if part])
            places += [place for place, part in zip(found, own, strict=True) if part]
        if places:
            _, made = keepers.scatter(number, RowShard.share, len(places), *wanted)
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


@dataclass(frozen=True, slots=True)
class KeptScoring:
    """The running scoring passes over the rows of one keeper."""

    rows: range
    facts: RolloutFacts
    answers: Mapping[str, Spread]
    """Field of Scored → the pass that computes it."""
    scores: Scores


def kept_batch(
    roles: Roles, keepers: RoleGroup[RowShard], prompts: Prompts, state: TrainState, config: RunConfig, clock: Clock
) -> KeptBatch:
    """Scored responses to `prompts`."""
    each, deadline_s = config.rollout.responses_per_prompt, config.deadlines.score_s
    engines, kept = len(roles.policy.engines), len(keepers)
    rows = keeper_rows(len(prompts) // each, each, engines=engines, keepers=kept)
    texts = prompts if not roles.policy.environment else None
    with clock("generate"):
        answered = roles.policy.stream_kept(prompts, rows, version=state.version)
        running = {own.keeper: start_kept(roles, keepers, own, rows[own.keeper].rows, texts) for own in answered}
    scorings = [running[number] for number in range(kept)]
    with clock("score"):
        wait_for([own for scoring in scorings for own in spreads_of(scoring)], deadline_s, roles.policy.recovery)
        facts = filled(keepers, scorings, prompts, deadline_s)
        whole = RolloutFacts.concatenate([scoring.facts for scoring in scorings])
        nothing = KeptGaps({})
        batch = KeptBatch(keepers, rows, deadline_s, list(state.prompts.drawn), whole, facts, nothing)
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


def start_kept(
    roles: Roles, keepers: RoleGroup[RowShard], kept: KeptRows, rows: range, texts: Prompts | None
) -> KeptScoring:
    """Give a keeper its rows, and start the scoring passes over them; returns at once."""
    facts = RolloutFacts.concatenate([part.facts for part in kept.parts])
    passes: dict[str, tuple[RoleGroup[Any], Callable[..., Any], Callable[[Rollouts], Any]]] = {
        role: (group, getattr(class_of(role), ROLES[role].scored_by), Sequences.of)
        for role, group in roles.models.items()
    }
    members = roles.reward.members
    passes |= {role: (member.group, member.method, member.reads) for role, member in members.items()}
    asked: list[ScoringPass] = []
    places: dict[str, int] = {}
    for role, (group, _, reads) in passes.items():
        same = [at for at, own in enumerate(asked) if own.reads == reads and len(own.parts) == len(group)]
        places[role] = same[0] if same else len(asked)
        if not same:
            asked.append(ScoringPass(reads, balance(facts.sizes.tolist(), len(group))))
    own = replace(texts.select(rows), token_ids=[[]] * len(rows)) if texts is not None else None
    count, parts = sum(len(one.parts) for one in asked), [part.rollouts for part in kept.parts]
    _, shares = keepers.scatter(kept.keeper, RowShard.take, count, rows.start, own, asked, *parts)
    edges = [sum(len(one.parts) for one in asked[:at]) for at in range(len(asked) + 1)]
    started = {
        role: Spread.start(group, method, asked[at].parts, shares[edges[at] : edges[at + 1]])
        for (role, (group, method, _)), at in zip(passes.items(), places.values(), strict=True)
    }
    answers = {ROLES[role].fills: started[role] for role in roles.models}
    scores = Scores({role: started[role] for role in members}, roles.reward.how, facts.paid)
    return KeptScoring(rows, facts, answers, scores)


def spreads_of(scoring: KeptScoring) -> list[Spread]:
    """All calls to wait for."""
    return [*scoring.answers.values(), *scoring.scores.spreads]


def filled(
    keepers: RoleGroup[RowShard], scorings: Sequence[KeptScoring], prompts: Prompts, deadline_s: float
) -> RowFacts:
    """Give the keepers what the passes over their rows have computed; the facts of all rows."""
    given, scores, apart, numbers = [], [], [], []
    for scoring in scorings:
        own, disagreement = scoring.scores.result(deadline_s)
        named = scoring.scores.named(deadline_s)
        parts = {name: answer.parts for name, answer in scoring.answers.items()}
        references = [ref for answer in scoring.answers.values() for ref in answer.call.refs]
        given.append((own, disagreement, named, parts, *references))
        scores.append(own)
        apart.append(disagreement)
        numbers += [counted | said for counted, said in zip(scoring.facts.counted, named, strict=True)]
    keepers.map_each(RowShard.fill, given).result(deadline_s)
    generated, finished = (
        torch.cat([getattr(scoring.facts, name) for scoring in scorings]) for name in ("generated", "finished")
    )
    named_rows = named_numbers(numbers, prompts.texts)
    return RowFacts(generated, finished, torch.cat(scores), torch.cat(apart), named_rows)


def within(rows: Sequence[int], own: range) -> list[int]:
    """Of `rows` of the batch, in rising order, those that `own` has, by their places in it."""
    return [row - own.start for row in rows[bisect_left(rows, own.start) : bisect_left(rows, own.stop)]]
