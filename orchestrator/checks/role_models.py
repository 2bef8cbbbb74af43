"""Checks the models of all roles together: each one is complete, and they fit one another.

A configuration flows in, the facts of the actor's model flow out; or a ConfigError that names keys, values and fixes.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.checks.engine_fit import longest_sample
from orchestrator.checks.heads import check_reward_head
from orchestrator.checks.model_support import check_attention, check_weights
from orchestrator.checks.models import (
    ModelFacts,
    check_context,
    check_same_tokens,
    check_tokenizer,
    model_facts,
)
from orchestrator.checks.problems_together import Problems
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.data.dataset_rows import is_hub_name
from orchestrator.errors import ConfigError
from roles.config.models import ModelConfig
from roles.model_files.folders import ADAPTER_CONFIG, folder_of
from roles.model_files.hub import NOT_FOUND, file_text

if TYPE_CHECKING:
    from roles.model_files.weight_check import Use


def check_role_models(config: EvaluationRun, problems: Problems) -> ModelFacts:
    """Check every model that the roles load; returns the actor's facts. What is wrong goes to `problems`; ConfigError
    if the actor's model cannot be read."""
    cache, (longest, sum_of) = config.model_cache, longest_sample(config)
    run = config if isinstance(config, RunConfig) and config.ppo.uses_critic else None
    actor = problems.of(lambda: _readable(model_facts(config.actor.model, "actor.model", cache)))
    loaded: list[tuple[ModelFacts | None, Use]] = []
    for role, scorer in config.reward_models.items():
        key = section_key(role)
        loaded.append((problems.of(partial(model_facts, scorer.model, f"{key}.model", cache)), "reward"))
        if (reward := loaded[-1][0]) is None:
            continue
        problems.of(partial(check_reward_head, reward))
        fix = f"use a reward model with the actor's tokenizer, or set {key}.text_bridge: true"
        if run and scorer.text_bridge and run.critic_model == scorer.model:
            fix = "critic.model is null, so it is the critic too; set critic.initialise_from: policy"
        elif scorer.text_bridge:
            continue
        if actor is not None:
            problems.of(partial(check_same_tokens, reward, actor, fix))
        if not scorer.text_bridge:
            problems.of(partial(check_context, reward, longest, sum_of))
    others: list[tuple[ModelFacts | None, Use]] = [
        (problems.of(partial(model_facts, model, f"{role}.model", cache)), "policy")
        for role, model in config.frozen_models.items()
    ]
    if run and run.critic.model is not None:
        others.append((problems.of(partial(_critic, run)), "value"))
    others.append((actor, "policy"))
    for other, _ in others:
        if other is not None and other is not actor and actor is not None:
            problems.of(partial(check_same_tokens, other, actor, "use a model with the actor's tokenizer"))
        if other is not None:
            problems.of(partial(check_context, other, longest, sum_of))
    loaded += others
    if run and run.critic_model == config.actor.model:
        loaded.append((actor, "value"))
    known = [(facts, use) for facts, use in loaded if facts is not None]
    for facts in {facts.folder: facts for facts, _ in known}.values():
        problems.of(partial(check_attention, facts))
    for facts, use in {(facts.folder, use): (facts, use) for facts, use in known}.values():
        problems.of(partial(check_weights, facts, use))
    if actor is None:
        problems.end()
    assert actor is not None
    return actor


def _readable(facts: ModelFacts) -> ModelFacts:
    check_tokenizer(facts)
    return facts


def _critic(run: RunConfig) -> ModelFacts:
    """The facts of the critic's own model."""
    assert run.critic.model is not None
    critic = model_facts(run.critic.model, "critic.model", run.model_cache)
    if run.ppo.value.normalise and critic.head is not None:
        raise ConfigError(
            f"ppo.value.normalise=true is for critics with a new head, and {critic.where} has a trained one, which "
            "speaks in plain units; use a language model's folder, or normalise: false"
        )
    return critic


def check_hub_names(config: EvaluationRun, problems: Problems) -> None:
    """Each model that is no folder here must be in the hub's cache or on the hub. Loads nothing."""
    for key, model in role_models(config).items():
        if not os.path.isdir(folder_of(model.path)) and is_hub_name(model.path):
            problems.of(partial(_check_hub, model, key))


def _check_hub(model: ModelConfig, key: str) -> None:
    """A model is known by its config.json; an adapter, and a GGUF file, may stand without one."""
    from huggingface_hub import snapshot_download

    with suppress(OSError, ValueError):  # what the cache does not have
        snapshot_download(model.path, revision=model.revision, local_files_only=True)
        return
    _, missing = file_text(model.path, "config.json", model.revision)
    if missing == NOT_FOUND:
        if model.gguf_file is not None:  # it is not worth its bytes to learn whether it is there
            return
        _, missing = file_text(model.path, ADAPTER_CONFIG, model.revision)
    if missing:
        raise ConfigError(f"{key}.path={model.path} is no folder here, and the hub does not give it ({missing})")


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
