"""The batch of a step in the driver's process: prompts flow in, scored rows and each rank's share of them flow out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor

from cluster.ranks.calls import Call
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import REWARD
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.run import RunConfig
from orchestrator.data.demonstrations import PtxSource
from orchestrator.errors import NotFinite
from orchestrator.groups.canary import SeenRows, with_right_weights
from orchestrator.groups.scoring import Roles, finish_scoring, start_scoring
from orchestrator.ppo.dynamic_sampling import Generated, generated, has_spread, refill
from orchestrator.ppo.experience import Experience, check_finite
from orchestrator.ppo.mini_batches import schedule_of, share_out, trained_rows, with_pretraining
from orchestrator.ppo.row_shard import RowShard
from orchestrator.ppo.scores import RunningScale, shape_scores
from orchestrator.ppo.shards import OwnShards, Shards
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.stats import RowFacts, TokenCounts
from orchestrator.run.phase_clock import Clock
from roles.actor import Actor, ActorStats
from roles.batch import Prompts, Rollouts, Scored
from roles.critic import Critic, CriticStats
from roles.shares import ActorExperience, CriticExperience, RankShare

Keep = Callable[[Scored], None]


@dataclass(slots=True)
class OwnBatch:
    """The scored rows of a step."""

    made: Generated
    """All samples of the step; without dynamic sampling those of the batch."""
    seen: SeenRows
    greedy: Rollouts | None = None
    """The greedy response to each prompt, if the advantages need it."""
    greedy_scores: Tensor | None = None
    """float32 `[prompts]`."""
    scored: Scored = field(init=False)
    """The batch."""
    _shard: RowShard = field(init=False)

    def __post_init__(self) -> None:
        self.scored = self.made.batch
        self._shard = RowShard(self.scored)

    def __len__(self) -> int:
        return len(self.scored)

    @property
    def shards(self) -> Shards:
        """Its one shard."""
        return OwnShards([self._shard])

    @property
    def facts(self) -> RowFacts:
        """What the statistics need of each row."""
        return RowFacts.of(self.scored)

    @property
    def experience(self) -> Experience:
        """The training data, on the whole batch."""
        return self._shard.experience

    @property
    def sampled_tokens(self) -> TokenCounts:
        """Of all samples, those that are not trained on included."""
        rollouts = self.made.scored.rollouts
        return TokenCounts(rollouts.lengths, rollouts.generated)

    @property
    def trained_tokens(self) -> TokenCounts:
        """Of the batch."""
        return TokenCounts(self.scored.rollouts.lengths, self.scored.rollouts.generated)

    def some(self, rows: Sequence[int]) -> Scored:
        """Those rows of the batch."""
        return self.scored.select(rows)

    def sampling_metrics(self) -> dict[str, float]:
        """What dynamic sampling has measured; nothing without it."""
        return self.made.metrics() if self.made.rounds else {}

    def baselines(self, ppo: PpoConfig, scale: RunningScale, each: int) -> Tensor | None:
        """Final scores of the greedy responses, once for each of the `each` rows of a prompt, float32 `[batch]`."""
        if self.greedy is None or self.greedy_scores is None:
            return None
        if not bool(self.greedy_scores.isfinite().all()):
            raise NotFinite(REWARD, "the reward's score of a greedy response is not finite: look at the responses")
        return shape_scores(self.greedy_scores, self.greedy, ppo, scale).repeat_interleave(each)

    def shared_out(self, roles: Roles, ppo: PpoConfig, *, seed: int) -> OwnShares:
        """The shares of the actor's and of the critic's ranks."""
        schedule, made = schedule_of(ppo, seed), self.experience
        critic = share_out(made.critic, ranks=len(roles.critic), **schedule) if roles.critic else []
        actor = share_out(made.actor, ranks=len(roles.actor), **schedule)
        trained = trained_rows(actor, ppo.epochs)
        return OwnShares(actor, critic, trained & trained_rows(critic, ppo.epochs) if critic else trained)


@dataclass(frozen=True, slots=True)
class OwnShares:
    """What each rank is sent."""

    actor: list[RankShare[ActorExperience]]
    critic: list[RankShare[CriticExperience]]
    """Empty without a critic."""
    trained: set[int]
    """Rows of the batch that all trained roles get once in each epoch."""
    cutting: Sequence[Call[None]] = ()
    """None: the rows are at hand."""

    @property
    def taught(self) -> bool:
        """Whether there is an optimizer step: those of all ranks, and of the critic, have the same rows."""
        return bool(self.actor[0].steps)

    def update_critic(self, critic: RoleGroup[Critic]) -> Call[CriticStats]:
        """Begin the optimizer steps of the critic."""
        return critic.map(Critic.update, self.critic)

    def update_actor(
        self, actor: RoleGroup[Actor], texts: PtxSource | None, coefficient: float, config: RunConfig
    ) -> Call[ActorStats]:
        """Begin the optimizer steps of the actor: see `start_actor_update`."""
        return start_actor_update(actor, self.actor, texts, coefficient, config)


def start_actor_update(
    actor: RoleGroup[Actor],
    shares: list[RankShare[ActorExperience]],
    texts: PtxSource | None,
    coefficient: float,
    config: RunConfig,
) -> Call[ActorStats]:
    """Begin the optimizer steps of the actor; with a pre-training loss, on fresh rows of its data, `texts`, too.
    `coefficient`: of the KL."""
    ptx = config.ppo.ptx
    if ptx is not None and texts is not None:
        shares = with_pretraining(shares, texts, ptx.sequences_per_mini_batch)
    return actor.map(Actor.update, shares, coefficient)


def own_batch(
    roles: Roles, prompts: Prompts, state: TrainState, config: RunConfig, clock: Clock, keep: Keep
) -> OwnBatch:
    """Scored responses to `prompts`, and with dynamic sampling to others. `keep`: see `train_step`."""
    ppo, deadlines = config.ppo, config.deadlines
    with clock("generate"):
        greedy = greedy_rollouts(roles, prompts, state, config)
        parts = roles.policy.stream(prompts, version=state.version, least=roles.least_rows)
        scorings = [start_scoring(roles, part, rollouts) for part, rollouts in parts]
        greedy_scores = roles.reward.start(greedy) if greedy else None
    with clock("score"):
        scored = finish_scoring(scorings, deadlines.score_s, roles.policy.recovery, greedy_scores)
        keep(scored)
        scored, seen = with_right_weights(roles, prompts, scored, state.canary, state.version, config)
        baselines = greedy_scores.result(deadlines.score_s)[0] if greedy_scores else None
        keep(scored)
    made = generated(prompts, state.prompts.drawn, scored)
    if ppo.dynamic_sampling is not None:
        check_finite(scored)  # before the choice, which might leave out the sample that tells
        more = partial(other_prompts, roles, state, config, clock, keep)
        spread = partial(has_spread, each=config.rollout.responses_per_prompt, ppo=ppo, scale=state.scale)
        made = refill(made, more, spread, prompts=config.rollout.prompts_per_step, rounds=ppo.dynamic_sampling.rounds)
    batch = OwnBatch(made, seen, greedy, baselines)
    keep(batch.scored)
    return batch


def other_prompts(
    roles: Roles, state: TrainState, config: RunConfig, clock: Clock, keep: Keep, count: int
) -> Generated:
    """Scored responses to the next `count` prompts, also given to `keep`. NotFinite if a number of theirs is not."""
    prompts = state.prompts.next(count, config.rollout.responses_per_prompt)
    with clock("generate"):
        parts = roles.policy.stream(prompts, version=state.version, least=roles.least_rows)
        scorings = [start_scoring(roles, part, rollouts) for part, rollouts in parts]
    with clock("score"):
        scored = finish_scoring(scorings, config.deadlines.score_s, roles.policy.recovery)
        scored, seen = with_right_weights(roles, prompts, scored, state.canary, state.version, config)
        keep(scored)
    check_finite(scored)
    state.canary.check(seen, state.version, config)
    return generated(prompts, state.prompts.drawn, scored)


def greedy_rollouts(roles: Roles, prompts: Prompts, state: TrainState, config: RunConfig) -> Rollouts | None:
    """The greedy response to each prompt, if the advantages need it; None otherwise."""
    if not config.ppo.advantage.needs_greedy:
        return None
    return roles.policy.generate(prompts.greedy(config.rollout.responses_per_prompt), version=state.version)
