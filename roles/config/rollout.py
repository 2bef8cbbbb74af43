"""Sampling and the vLLM engines: the section `rollout`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import Dtype, Section


class EngineConfig(Section):
    """One vLLM engine."""

    dtype: Dtype | None = None
    """Of weights and activations; null: the run's `dtype`. With float32 in both, vLLM's log-probabilities agree with
    the actor's to about 4e-6 nats."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory of the KV cache on CPU, in GiB."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes (weights and KV cache)."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens per block of the KV cache; on CPU a multiple of 32. null: 32 on CPU, vLLM's default on GPUs."""
    max_sequences: int = Field(default=256, ge=1)
    """Most responses that are generated at the same time."""
    enforce_eager: bool | None = None
    """Generate without compiled graphs; null: true on CPU (it starts faster), false on GPUs."""
    sleep: Literal[0, 1, 2] = 0
    """What an engine does between generating and the next push, on GPUs that other roles share: 0 stays awake, 1 moves
    its weights to the host, 2 drops them (the push brings new ones)."""
    prefix_caching: bool = True
    """Reuse the KV cache of equal prompt beginnings; the cache is emptied at every push."""


class RolloutConfig(Section):
    """How the policy is sampled."""

    prompts_per_step: int = Field(ge=1)
    """Prompts of one PPO step."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Responses to each prompt; a step has prompts_per_step x responses_per_prompt samples."""
    max_response_tokens: int = Field(ge=1)
    """Most tokens of one response; a longer one is cut (*truncated*)."""
    min_response_tokens: int = Field(default=0, ge=0)
    """Fewest tokens of one response: before them EOS is forbidden. Old, new and reference log-probabilities and the
    entropy are of the same distribution, without EOS. Benchmarks set it to the maximum."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Divides the logits before sampling, and those of old, new and reference log-probabilities alike. At least 0.01,
    vLLM's own limit."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample only from the most likely tokens that together have this probability; 1: from all."""
    top_k: int = Field(default=0, ge=0)
    """Sample only from this number of most likely tokens; 0: from all."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Sample only from tokens that are at least this share as likely as the likeliest one; 0: from all."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a response, as EOS does; a response keeps the one that has ended it."""
    stop_token_ids: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Tokens that end a response, as EOS does; a response keeps the one that has ended it."""
    stream_samples: int = Field(default=0, ge=0)
    """Number of finished samples of an engine that are scored while it generates others; 0: score all its samples when
    its last one is finished. Neighbours wait for each other until every rank of the largest group with a model has
    four. If the engines sleep, the samples of all engines are scored at once."""
    engine: EngineConfig = EngineConfig()
    """Settings of each vLLM engine."""
