"""Rules of sampling from the policy: responses, conversations, engines."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.sampling import SamplingConfig
from roles.config.rollout import EngineConfig


def response_rules(config: SamplingConfig) -> Iterator[str]:
    """Rules for the length of a response."""
    rollout = config.rollout
    if rollout.min_response_tokens > rollout.max_response_tokens:
        yield (
            f"rollout.min_response_tokens={rollout.min_response_tokens} is more than rollout.max_response_tokens="
            f"{rollout.max_response_tokens}; lower it"
        )


def prompt_rules(config: SamplingConfig) -> Iterator[str]:
    """Rules between the keys of `prompts`."""
    prompts = config.prompts
    if prompts.heldout is not None and prompts.heldout_fraction is not None:
        yield (
            f"prompts.heldout_fraction={prompts.heldout_fraction:g} takes held-out prompts from prompts.train, and "
            "prompts.heldout names others; remove one of the two"
        )


def environment_rules(config: SamplingConfig) -> Iterator[str]:
    """Rules for the keys of `prompts` if there is an environment."""
    environment = config.environment
    if environment is None:
        return
    first = config.prompts.max_tokens + config.rollout.max_response_tokens
    if environment.max_tokens < first:
        yield (
            f"environment.max_tokens={environment.max_tokens} does not hold the first messages (prompts.max_tokens="
            f"{config.prompts.max_tokens}) and one response (rollout.max_response_tokens="
            f"{config.rollout.max_response_tokens}); use {first} or more"
        )
    unread = {
        f"prompts.column={config.prompts.column}": config.prompts.column is not None,
        f"prompts.tools={config.prompts.tools}": config.prompts.tools is not None,
        f"prompts.too_long={config.prompts.too_long}": config.prompts.too_long != "error",
    }
    for key in [key for key, given in unread.items() if given]:
        yield f"{key} is not read with an environment, which makes the prompts from the rows' columns; remove it"


def engine_rules(config: SamplingConfig) -> Iterator[str]:
    """Settings that vLLM's engines do not support on CPUs."""
    yield from cpu_engine_rules("rollout.engine", config.rollout.engine, config.device)


def cpu_engine_rules(key: str, engine: EngineConfig, device: str) -> Iterator[str]:
    """As `engine_rules`, for the engines of the section `key`."""
    if device == "cpu" and engine.block_size is not None and engine.block_size % 32:
        near = max(32, round(engine.block_size / 32) * 32)
        yield (
            f"{key}.block_size={engine.block_size} is not a multiple of 32, which vLLM's CPU build needs; use {near}, "
            "or null"
        )
    if engine.sleep and device == "cpu":
        yield f"{key}.sleep={engine.sleep} has no GPU memory to free with device=cpu; set it to 0"
