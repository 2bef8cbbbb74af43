"""Rules of retraining the reward model."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.counts import counted
from orchestrator.config.run import RunConfig
from roles.config.rewards import ModelReward


def retraining_rules(config: RunConfig) -> Iterator[str]:
    """One reward model that reads the policy's own tokens; steps in which it is retrained, and the actor trained."""
    retraining, reward = config.retraining, config.reward
    if retraining is None:
        return
    if not isinstance(reward, ModelReward):
        yield (
            f"retraining trains the reward model, but reward.type={reward.type} is not one model; use reward.type: "
            "model, or remove retraining"
        )
    elif reward.text_bridge:
        yield (
            "retraining trains the reward model on the policy's own tokens, but reward.text_bridge=true; use a reward "
            "model with the actor's tokenizer, or remove retraining"
        )
    if config.environment is not None:
        yield "retraining compares responses, not conversations; set environment=null, or remove retraining"
    steps, rising = config.retraining_steps, retraining.optimizer.schedule.warmup_steps
    if not steps:
        warmup = config.critic.warmup.max_steps
        after = f" and after critic.warmup.max_steps={warmup}" if warmup else ""
        yield (
            f"retraining.every={retraining.every} is never reached before the last of the run's steps={config.steps}"
            f"{after}; lower it, raise steps, or remove retraining"
        )
    elif rising >= steps:
        yield (
            f"retraining.optimizer.schedule.warmup_steps={rising} is not below the "
            f"{counted(steps, 'optimizer step')} of the run's retrainings; lower it, or raise retraining.epochs"
        )
    critic_steps = retraining.critic_steps if config.ppo.uses_critic else 0
    if critic_steps >= retraining.every:
        yield (
            f"retraining.critic_steps={critic_steps} leaves none of the {retraining.every} steps between two "
            "retrainings (retraining.every) to the actor; lower it, or raise retraining.every"
        )
    if config.rollout.engine.sleep == 2 and critic_steps:
        yield (
            f"rollout.engine.sleep=2 drops weights that no push renews in retraining.critic_steps={critic_steps}; use "
            "sleep: 1, or critic_steps: 0"
        )
    sampled = retraining.prompts * retraining.responses_per_prompt
    if retraining.pinned > sampled:
        yield (
            f"retraining.pinned={retraining.pinned} is more than the {sampled} responses of a retraining "
            f"(retraining.prompts={retraining.prompts} x responses_per_prompt={retraining.responses_per_prompt}); use "
            f"{sampled} or fewer"
        )
