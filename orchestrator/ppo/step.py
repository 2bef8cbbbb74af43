"""One PPO step. Prompts flow in, trained weights and a StepResult flow out; the step changes a `TrainState`.

`train_step` is the algorithm (Schulman et al., arXiv 1707.06347; Ouyang et al., arXiv 2203.02155).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from cluster.ranks.calls import Call, wait_all
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import REWARD
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.run import RunConfig
from orchestrator.data.demonstrations import PtxSource
from orchestrator.data.prompts import PromptSource
from orchestrator.errors import CheckpointError, NotFinite
from orchestrator.groups.canary import Canary, with_right_weights
from orchestrator.groups.scoring import Roles, finish_scoring, start_scoring
from orchestrator.ppo.dynamic_sampling import Generated, generated, has_spread, refill
from orchestrator.ppo.experience import Experience, Terms, check_finite
from orchestrator.ppo.kl import KlController
from orchestrator.ppo.mini_batches import share_out, trained_rows, with_pretraining
from orchestrator.ppo.row_shard import RowShard
from orchestrator.ppo.scores import RunningScale, shape_scores
from orchestrator.ppo.shards import OwnShards, make_experience
from orchestrator.ppo.stats import ExperienceStats, RowFacts
from orchestrator.run.phase_clock import Clock
from roles.actor import Actor, ActorStats
from roles.batch import Prompts, Rollouts, Scored
from roles.critic import Critic, CriticStats
from roles.measured import measured
from roles.shares import ActorExperience, CriticExperience, RankShare


@dataclass(slots=True)
class TrainState:
    """The driver's state that changes from step to step; all of it is in every checkpoint."""

    prompts: PromptSource
    kl: KlController
    scale: RunningScale = field(default_factory=RunningScale)
    """Running scale of the scores."""
    value_scale: RunningScale = field(default_factory=RunningScale)
    """Running scale of the returns, if the critic's targets are normalised."""
    canary: Canary = field(default_factory=Canary)
    """Check that the engines have the actor's weights."""
    warm_at: int | None = None
    """The first step in which the actor is trained; None while the critic warms up."""
    ptx: PtxSource | None = None
    """Rows of the pre-training loss; None without one."""
    step: int = 0
    """Number of PPO steps done."""
    version: int = 0
    """Version of the actor's weights; the engines must have the same."""
    samples: int = 0
    """Number of responses trained on so far."""

    _COUNTERS: ClassVar = ("step", "version", "samples", "warm_at")
    _PARTS: ClassVar = ("prompts", "kl", "scale", "value_scale", "canary")

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        return {
            **{name: getattr(self, name) for name in self._COUNTERS},
            **{name: getattr(self, name).state_dict() for name in self._parts},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of `state_dict`. Raises CheckpointError if one is missing."""
        missing = [name for name in (*self._COUNTERS, *self._parts) if name not in state]
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {', '.join(missing)}: another version of Tetrarch has written it; resume with "
                "that one, or start anew with another run_dir"
            )
        for name in self._COUNTERS:
            setattr(self, name, state[name])
        for name in self._parts:
            getattr(self, name).load_state_dict(state[name])

    @property
    def _parts(self) -> tuple[str, ...]:
        return self._PARTS if self.ptx is None else (*self._PARTS, "ptx")


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results of one PPO step."""

    generated: Generated
    """All samples of the step; without dynamic sampling those of the batch."""
    scored: Scored
    """The batch."""
    experience: Experience
    """The training data, on the whole batch."""
    stats: ExperienceStats
    critic: CriticStats | None
    """None without a critic, and if the batch has no trained token."""
    actor: ActorStats | None
    """None while only the critic is trained, and if the batch has no trained token."""
    trained: set[int]
    """Of the batch, the rows that every trained role got once in each epoch."""
    failed: Exception | None = None
    """What has kept the new weights from the engines. The step is done all the same: actor and critic have learned."""


def train_step(
    roles: Roles, prompts: Prompts, state: TrainState, config: RunConfig, clock: Clock, keep: Callable[[Scored], None]
) -> StepResult:
    """One step of PPO: sample, score, estimate advantages, update critic and actor, push the new weights.

    `keep` is called with the batch as soon as it is scored, so that it can be saved if the step fails later.
    """
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
        keep(scored := made.batch)
    with clock("experience"):
        experience, stats = prepare(scored, greedy, baselines, state, config)
        stats = stats if roles.recomputes else with_gaps(stats, seen.gaps)
        state.canary.check(seen, state.version, config)
        actor_shares, critic_shares, trained = shared_out(roles, experience, ppo, seed=config.seed + state.step)
        taught = bool(actor_shares[0].steps)  # those of all ranks, and of the critic, have the same rows
    with clock("update"):
        critic_update = roles.critic.map(Critic.update, critic_shares) if roles.critic and taught else None
        warm = begin_if_warm(roles, state, stats, config)
        learns = warm and taught
        actor_update = start_actor_update(roles.actor, actor_shares, state.ptx, state.kl, config) if learns else None
        wait_all([update for update in (critic_update, actor_update) if update], deadlines.update_s)
    actor_stats = actor_update.result(deadlines.update_s)[0] if actor_update else None
    critic_stats = critic_update.result(deadlines.update_s)[0] if critic_update else None
    if warm:
        state.version += 1
        state.kl.update(stats.kl, len(scored))
    state.samples += len(scored)
    state.step += 1
    failed = push(roles, state.version, clock) if warm else None
    return StepResult(made, scored, experience, stats, critic_stats, actor_stats, trained, failed)


def push(roles: Roles, version: int, clock: Clock) -> Exception | None:
    """Send the actor's weights to the engines, without an update too: those that sleep may have dropped theirs. Returns
    what has kept it from that."""
    try:
        with clock("push"):
            roles.policy.load(roles.actor, version=version)
    except Exception as error:  # of whatever kind; `StepReport.failed` ends the run
        return error
    return None


def shared_out(
    roles: Roles, experience: Experience, ppo: PpoConfig, *, seed: int
) -> tuple[list[RankShare[ActorExperience]], list[RankShare[CriticExperience]], set[int]]:
    """The shares of the actor's and of the critic's ranks, and the rows that all trained roles get once in each
    epoch."""
    schedule = {"epochs": ppo.epochs, "mini_batches": ppo.mini_batches, "seed": seed}
    critic = share_out(experience.critic, ranks=len(roles.critic), **schedule) if roles.critic else []
    actor = share_out(experience.actor, ranks=len(roles.actor), **schedule)
    trained = trained_rows(actor, ppo.epochs)
    return actor, critic, trained & trained_rows(critic, ppo.epochs) if critic else trained


def with_gaps(stats: ExperienceStats, gaps: Tensor | None) -> ExperienceStats:
    """The statistics with the engines' gap of those samples that the actor has looked at; None: of none."""
    mean, most = (None, None) if gaps is None else (float(gaps.mean()), float(gaps.max()))
    return replace(stats, logprob_gap_mean=mean, logprob_gap_max=most)


def start_actor_update(
    actor: RoleGroup[Actor],
    shares: list[RankShare[ActorExperience]],
    texts: PtxSource | None,
    kl: KlController,
    config: RunConfig,
) -> Call[ActorStats]:
    """Begin the optimizer steps of the actor; with a pre-training loss, on fresh rows of its data, `texts`, too."""
    ptx = config.ppo.ptx
    if ptx is not None and texts is not None:
        shares = with_pretraining(shares, texts, ptx.sequences_per_mini_batch)
    return actor.map(Actor.update, shares, kl.coefficient)


def other_prompts(
    roles: Roles, state: TrainState, config: RunConfig, clock: Clock, keep: Callable[[Scored], None], count: int
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


def prepare(
    scored: Scored, greedy: Rollouts | None, greedy_scores: Tensor | None, state: TrainState, config: RunConfig
) -> tuple[Experience, ExperienceStats]:
    """Experience and statistics of a batch, from its final scores. Updates the scales in `state`."""
    ppo, each = config.ppo, config.rollout.responses_per_prompt
    state.scale.update(scored.scores)
    baselines = None
    if greedy is not None and greedy_scores is not None:
        if not bool(greedy_scores.isfinite().all()):
            raise NotFinite(REWARD, "the reward's score of a greedy response is not finite: look at the responses")
        baselines = shape_scores(greedy_scores, greedy, ppo, state.scale).repeat_interleave(each)
    units = state.value_scale if ppo.value.normalise else None
    shard = RowShard(scored)
    stats = make_experience(
        OwnShards([shard]),
        RowFacts.of(scored),
        Terms(ppo, state.kl.coefficient, responses_per_prompt=each, scale=state.scale, value_scale=units),
        scores=shape_scores(scored.scores, scored.rollouts, ppo, state.scale),
        baselines=baselines,
        value_scale=units,
    )
    return shard.experience, stats


def begin_if_warm(roles: Roles, state: TrainState, stats: ExperienceStats, config: RunConfig) -> bool:
    """Begin to train the actor when the critic is warm. Returns whether the actor is trained on this batch, which the
    critic has not been trained on. It is not where the critic learns what a retrained reward model says.

    Nothing of the warm-up is left: its samples are not used again, and the actor's schedule starts at its beginning.
    """
    warmup = config.critic.warmup
    gate = warmup.until_explained_variance
    ready = state.step >= warmup.max_steps or (gate is not None and stats.explained_variance >= gate)
    if state.warm_at is None and ready:
        state.warm_at = state.step
        if state.step != warmup.max_steps:
            expect_steps(roles.actor, state.warm_at, config)
    return state.warm_at is not None and not config.critic_alone(state.step, state.warm_at)


def expect_steps(actor: RoleGroup[Actor], warm_at: int, config: RunConfig) -> None:
    """Set the length of the actor's schedule to the steps in which it is trained; the first follows `warm_at` steps."""
    steps = config.actor_steps(warm_at) * config.ppo.optimizer_steps
    actor.call(Actor.expect, steps).result(config.deadlines.update_s)


def step_metrics(result: StepResult) -> dict[str, float]:
    """Metrics of learning in a step, by the names of `orchestrator.metrics`."""
    metrics = result.stats.metrics() | measured(result.critic) | measured(result.actor)
    if result.generated.rounds:
        metrics |= result.generated.metrics()
    if result.critic is None:
        del metrics["value/explained_variance"]
    return metrics
