"""Sampling and the vLLM engines: the section `rollout`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roles.config.section import Dtype, Section


class EngineConfig(Section):
    """One vLLM engine."""

    dtype: Dtype | None = None
    """null: the run's `dtype`. float32 on both sides makes vLLM's log-probabilities agree to about 4e-6."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory of the KV cache on CPU, GiB."""
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    """Share of a GPU's memory that vLLM takes (weights and KV cache)."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens a KV block; on CPU a multiple of 32; null lets us choose (32 on CPU, vLLM's own on GPUs)."""
    max_sequences: int = Field(default=256, ge=1)
    """Responses generated at once."""
    enforce_eager: bool | None = None
    """Without graph compilation; null: true on CPU (it starts faster), false on GPUs."""
    sleep: Literal[0, 1, 2] = 0
    """Between generating and the next push, on GPUs that others share: 0 stays awake, 1 moves the weights to the host,
    2 drops them (the push brings new ones)."""
    prefix_caching: bool = True
    """Share the KV cache of equal prompt beginnings; dropped with the old weights at every push."""


class RolloutConfig(Section):
    """How the policy is sampled."""

    prompts_per_step: int = Field(ge=1)
    """Prompts of one PPO step."""
    responses_per_prompt: int = Field(default=1, ge=1)
    """Samples of each prompt; a step has prompts_per_step x responses_per_prompt samples."""
    max_response_tokens: int = Field(ge=1)
    """A response that has not ended after so many tokens is cut (*truncated*)."""
    min_response_tokens: int = Field(default=0, ge=0)
    """EOS is forbidden before so many tokens (benchmarks set it to the maximum), also in old, new and reference
    log-probabilities and the entropy: all are of the distribution without it."""
    temperature: float = Field(default=1.0, ge=0.01, le=100)
    """Also divides the logits of old, new and reference log-probabilities alike. vLLM raises what is below 0.01."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Sample from the most likely tokens that hold this much probability; 1 is off."""
    top_k: int = Field(default=0, ge=0)
    """0 is off."""
    stream_samples: int = Field(default=0, ge=0)
    """Score each so many samples of an engine as soon as they are generated; 0: all that it made, when its last one is
    done. If the engines sleep, the samples of all of them are scored at once."""
    engine: EngineConfig = EngineConfig()
    """Each vLLM engine."""
