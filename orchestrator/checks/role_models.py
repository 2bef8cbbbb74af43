"""Checks the models of all roles together: each one is complete, and they fit one another.

A configuration flows in, the facts of the actor's model flow out; or a ConfigError that names key, value and fix.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.checks.engine_fit import longest_sample
from orchestrator.checks.model_support import check_attention, check_weights
from orchestrator.checks.models import (
    ModelFacts,
    check_context,
    check_reward_head,
    check_same_tokens,
    check_tokenizer,
    model_facts,
)
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.errors import ConfigError
from roles.config.models import ModelConfig

if TYPE_CHECKING:
    from roles.model_files.weight_check import Use


def check_role_models(config: EvaluationRun) -> ModelFacts:
    """Check every model that the roles load; returns the actor's facts."""
    cache, (longest, sum_of) = config.model_cache, longest_sample(config)
    run = config if isinstance(config, RunConfig) and config.ppo.uses_critic else None
    actor = model_facts(config.actor.model, "actor.model", cache)
    check_tokenizer(actor)
    others: list[tuple[ModelFacts, Use]] = []
    rewards = []
    for role, model in config.frozen_models.items():
        others.append((model_facts(model, f"{role}.model", cache), "policy"))
    for role, scorer in config.reward_models.items():
        key = section_key(role)
        reward = model_facts(scorer.model, f"{key}.model", cache)
        rewards.append(reward)
        check_reward_head(reward)
        if not scorer.text_bridge:
            fix = f"use a reward model with the actor's tokenizer, or set {key}.text_bridge: true"
            check_same_tokens(reward, actor, fix)
            check_context(reward, longest, sum_of)
        elif run and run.critic_model == scorer.model:
            fix = "critic.model is null, so it is the critic too; set critic.initialise_from: policy"
            check_same_tokens(reward, actor, fix)
    if run and run.critic.model is not None:
        critic = model_facts(run.critic.model, "critic.model", cache)
        if run.ppo.value.normalise and critic.head is not None:
            raise ConfigError(
                f"ppo.value.normalise=true is for critics with a new head, and {critic.where} has a trained one, which "
                "speaks in plain units; use a language model's folder, or normalise: false"
            )
        others.append((critic, "value"))
    check_context(actor, longest, sum_of)
    for other, _ in others:
        check_same_tokens(other, actor, "use a model with the actor's tokenizer")
        check_context(other, longest, sum_of)
    loaded: list[tuple[ModelFacts, Use]] = [*((reward, "reward") for reward in rewards), *others, (actor, "policy")]
    if run and run.critic_model == config.actor.model:
        loaded.append((actor, "value"))
    for facts in {facts.folder: facts for facts, _ in loaded}.values():
        check_attention(facts)
    for facts, use in {(facts.folder, use): (facts, use) for facts, use in loaded}.values():
        check_weights(facts, use)
    return actor


def role_models(config: EvaluationRun) -> dict[str, ModelConfig]:
    """Key path → model, for every model that the configuration names for a role."""
    with_critic = isinstance(config, RunConfig) and config.ppo.uses_critic
    named = {
        "actor.model": config.actor.model,
        **{f"{role}.model": model for role, model in config.frozen_models.items()},
        "critic.model": config.critic.model if isinstance(config, RunConfig) and with_critic else None,
        **{f"{section_key(role)}.model": scorer.model for role, scorer in config.reward_models.items()},
    }
    return {key: model for key, model in named.items() if model is not None}
