"""One PPO step. Prompts flow in, trained weights and a StepResult flow out; the step changes a `TrainState`.

`train_step` is the algorithm (Schulman et al., arXiv 1707.06347; Ouyang et al., arXiv 2203.02155).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from cluster.ranks.calls import wait_all
from cluster.ranks.role_group import RoleGroup
from cluster.ranks.watch import STARTED
from orchestrator.config.run import RunConfig
from orchestrator.groups.scoring import Roles
from orchestrator.ppo.experience import Terms
from orchestrator.ppo.kept_batch import KeptBatch, kept_batch
from orchestrator.ppo.own_batch import Keep, OwnBatch, own_batch
from orchestrator.ppo.scores import shape_scores
from orchestrator.ppo.shards import make_experience
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.stats import ExperienceStats
from orchestrator.run.phase_clock import Clock
from roles.actor import Actor, ActorStats
from roles.batch import Prompts
from roles.critic import CriticStats
from roles.measured import measured


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results of one PPO step."""

    batch: OwnBatch | KeptBatch
    """The samples that were trained on, with what was computed of them."""
    stats: ExperienceStats
    critic: CriticStats | None
    """None without a critic, and if the batch has no trained token."""
    actor: ActorStats | None
    """None while only the critic is trained, and if the batch has no trained token."""
    trained: set[int]
    """Of the batch, the rows that every trained role got once in each epoch."""
    failed: Exception | None = None
    """What has kept the new weights from the engines. The step is done all the same: actor and critic have learned."""

    @property
    def own(self) -> OwnBatch:
        """The batch of a step without keepers."""
        assert isinstance(self.batch, OwnBatch)
        return self.batch


def train_step(
    roles: Roles, prompts: Prompts, state: TrainState, config: RunConfig, clock: Clock, keep: Keep
) -> StepResult:
    """One step of PPO: sample, score, estimate advantages, update critic and actor, push the new weights.

    `keep` is called with the batch as soon as it is scored, so that it can be saved if the step fails later.
    """
    ppo, deadlines = config.ppo, config.deadlines
    batch = sampled(roles, prompts, state, config, clock, keep)
    with clock("experience"):
        stats = prepare(batch, state, config)
        stats = stats if roles.recomputes else with_gaps(stats, batch.seen.gaps)
        state.canary.check(batch.seen, state.version, config)
        shares = batch.shared_out(roles, ppo, seed=config.seed + state.step)
    with clock("update"):
        critic_update = shares.update_critic(roles.critic) if roles.critic and shares.taught else None
        warm = begin_if_warm(roles, state, stats, config)
        learns = warm and shares.taught
        actor_update = shares.update_actor(roles.actor, state.ptx, state.kl.coefficient, config) if learns else None
        if shares.cutting:  # a keeper that dies before its call has ended leaves them without rows
            wait_all(shares.cutting, deadlines.update_s)
        with STARTED.only([rank for group in (roles.actor, roles.critic) if group for rank in group.ranks]):
            # The death of another rank costs no step: whoever needs it next finds it.
            wait_all([update for update in (critic_update, actor_update) if update], deadlines.update_s)
            actor_stats = actor_update.result(deadlines.update_s)[0] if actor_update else None
            critic_stats = critic_update.result(deadlines.update_s)[0] if critic_update else None
    if warm:
        state.version += 1
        state.kl.update(stats.kl, len(batch))
    state.samples += len(batch)
    state.step += 1
    failed = push(roles, state.version, clock) if warm else None
    return StepResult(batch, stats, critic_stats, actor_stats, shares.trained, failed)


def sampled(
    roles: Roles, prompts: Prompts, state: TrainState, config: RunConfig, clock: Clock, keep: Keep
) -> OwnBatch | KeptBatch:
    """Scored responses to `prompts`, wherever they are."""
    if roles.keepers is not None:
        return kept_batch(roles, roles.keepers, prompts, state, config, clock)
    return own_batch(roles, prompts, state, config, clock, keep)


def prepare(batch: OwnBatch | KeptBatch, state: TrainState, config: RunConfig) -> ExperienceStats:
    """Make the training data of a batch from its final scores; its statistics. Updates the scales in `state`."""
    ppo, each, facts = config.ppo, config.rollout.responses_per_prompt, batch.facts
    state.scale.update(facts.scores)
    units = state.value_scale if ppo.value.normalise else None
    return make_experience(
        batch.shards,
        facts,
        Terms(ppo, state.kl.coefficient, responses_per_prompt=each, scale=state.scale, value_scale=units),
        scores=shape_scores(facts.scores, facts, ppo, state.scale),
        baselines=batch.baselines(ppo, state.scale, each),
        value_scale=units,
    )


def push(roles: Roles, version: int, clock: Clock) -> Exception | None:
    """Send the actor's weights to the engines, without an update too: those that sleep may have dropped theirs. Returns
    what has kept it from that."""
    try:
        with clock("push"):
            roles.policy.load(roles.actor, version=version)
    except Exception as error:  # of whatever kind; `StepReport.failed` ends the run
        return error
    return None


def with_gaps(stats: ExperienceStats, gaps: Tensor | None) -> ExperienceStats:
    """The statistics with the engines' gap of those samples that the actor has looked at; None: of none."""
    mean, most = (None, None) if gaps is None else (float(gaps.mean()), float(gaps.max()))
    return replace(stats, logprob_gap_mean=mean, logprob_gap_max=most)


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
    metrics |= result.batch.sampling_metrics()
    if result.critic is None:
        del metrics["value/explained_variance"]
    return metrics
