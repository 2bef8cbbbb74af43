"""Rules of the models that PPO trains and compares with."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.run import RunConfig


def adapter_rules(config: RunConfig) -> Iterator[str]:
    """Rules of low-rank adapters."""
    reference = config.reference
    if reference.share_actor and config.actor.lora is None:
        yield (
            "reference.share_actor=true needs actor.lora, without which the actor's own weights move; set actor.lora: "
            "{rank: 16}, or share_actor: false"
        )
    if reference.share_actor and reference != type(reference)(share_actor=True):
        yield (
            "reference.share_actor=true takes the actor's model, ranks and micro-batches as they are; remove the other "
            "keys of reference, or set share_actor: false"
        )
    if config.actor.lora is not None and config.actor.ema_decay is not None:
        yield (
            f"actor.ema_decay={config.actor.ema_decay:g} averages whole weights, and actor.lora trains adapters, whose "
            "means do not multiply to the mean of what they add; remove one"
        )


def critic_rules(config: RunConfig) -> Iterator[str]:
    """Rules of the model that the critic starts from, and of the units of its values."""
    if not config.ppo.uses_critic:
        return
    critic = config.critic
    if config.critic_model is None:
        yield (
            f"critic.model is null, which means the reward model, but reward.type={config.reward.type} has "
            f"{'several' if config.reward.type == 'ensemble' else 'none'}; "
            "set critic.initialise_from: policy (its value head starts anew), or critic.model.path"
        )
    if critic.model is not None and critic.initialise_from == "policy":
        yield "critic.initialise_from=policy is for critic.model: null, but critic.model.path is set; remove one"
    if config.ppo.value.normalise and critic.model is None and critic.initialise_from == "reward":
        yield (
            "ppo.value.normalise=true reads the critic in units of the returns' deviation, but one that starts from "
            "the reward model speaks in scores; set critic.initialise_from: policy (a new head), or normalise: false"
        )
    gate = critic.warmup.until_explained_variance
    if gate is not None and not critic.warmup.max_steps:
        yield (
            f"critic.warmup.until_explained_variance={gate:g} has no steps to be reached in; set "
            "critic.warmup.max_steps (50, say)"
        )
