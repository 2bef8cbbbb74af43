"""Checks that the engines can run the policy: heads per process, and room for one sample in the KV cache.

A configuration and the facts of the actor's model flow in; nothing flows out, or a ConfigError.
"""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import psutil

from cluster.estimate.memory import GIB
from cluster.estimate.model_size import splits
from cluster.placement.plan import ranks_of, tensor_parallel_size
from cluster.role_table import ENGINES
from orchestrator.checks.model_support import check_cpu_engine, check_engine_class, check_engine_weights
from orchestrator.checks.models import ModelFacts
from orchestrator.config.sampling import SamplingConfig
from orchestrator.errors import ConfigError


def longest_sample(config: SamplingConfig) -> tuple[int, str]:
    """Tokens of the longest possible sample, and the keys that determine it."""
    if config.environment is not None:
        return config.longest_sample, "environment.max_tokens"
    prompt, response = config.prompts.max_tokens, config.rollout.max_response_tokens
    return prompt + response, f"prompts.max_tokens={prompt} + rollout.max_response_tokens={response}"


def check_engine(config: SamplingConfig, actor: ModelFacts) -> None:
    """Raise ConfigError unless vLLM can split the model over its processes and run it on this device."""
    parallel = tensor_parallel_size(config.placement)
    if actor.heads and actor.kv_heads and not splits(actor.heads, actor.kv_heads, parallel):
        fitting = [n for n in range(1, actor.heads + 1) if splits(actor.heads, actor.kv_heads, n)]
        raise ConfigError(
            f"the engines' tensor_parallel_size={parallel} does not divide the {actor.heads} attention heads "
            f"({actor.kv_heads} of keys and values) of {actor.where}; use {', '.join(map(str, fitting[:5]))}"
        )
    unknown = [token for token in config.rollout.stop_token_ids if token >= (actor.vocabulary or token + 1)]
    if unknown:
        raise ConfigError(
            f"rollout.stop_token_ids: {unknown[0]} is no token of {actor.where}, whose tokens are 0 to "
            f"{(actor.vocabulary or 1) - 1}; correct it"
        )
    check_engine_class(actor)
    check_engine_weights(actor)
    if config.device == "cpu":
        check_cpu_engine(actor, config.rollout.engine.dtype or config.dtype)
        _check_kv_cache(config, actor)


def check_planned_engine(config: SamplingConfig) -> None:
    """What `check_engine` refuses of the policy's config.json alone, before a plan says that it fits."""
    if config.device != "cpu":
        return
    from orchestrator.sizes.model_sources import UnknownModel, read_config

    model = config.actor.model
    with suppress(UnknownModel):
        said = read_config(model, "actor.model", Path(config.model_cache))
        facts = ModelFacts("actor.model", model, Path(model.path), said)
        check_cpu_engine(facts, config.rollout.engine.dtype or config.dtype)
        _check_room_for_a_sample(config, facts)


def _check_kv_cache(config: SamplingConfig, actor: ModelFacts) -> None:
    engine = config.rollout.engine
    ranks = ranks_of(config.placement, ENGINES) * tensor_parallel_size(config.placement)
    total, memory = ranks * engine.kv_cache_gib, psutil.virtual_memory().total / GIB
    if total > memory:
        raise ConfigError(
            f"rollout.engine.kv_cache_gib={engine.kv_cache_gib:g} for each of {ranks} engine processes is {total:g} "
            f"GiB, but this machine has {memory:.0f} GiB; lower it"
        )
    _check_room_for_a_sample(config, actor)


def _check_room_for_a_sample(config: SamplingConfig, actor: ModelFacts) -> None:
    """Without a GPU."""
    engine, (longest, _) = config.rollout.engine, longest_sample(config)
    per_token = actor.kv_bytes_per_token(engine.dtype or config.dtype)
    if per_token is None:
        return
    needed = longest * per_token / tensor_parallel_size(config.placement) / GIB
    if needed > engine.kv_cache_gib:
        raise ConfigError(
            f"rollout.engine.kv_cache_gib={engine.kv_cache_gib:g} does not hold one sample of {longest} tokens; use "
            f"{math.ceil(100 * needed) / 100:g} or more"
        )
