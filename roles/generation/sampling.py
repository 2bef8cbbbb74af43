"""vLLM's parameters of one request: the sampling keys of `rollout` and a turn flow in, SamplingParams flow out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from roles.config.rollout import RolloutConfig
from roles.generation.conversation import Turn

if TYPE_CHECKING:
    from vllm import SamplingParams


def sampling(
    rollout: RolloutConfig, stop_token_ids: Sequence[int], turn: Turn, *, stream: bool = False
) -> SamplingParams:
    """vLLM's parameters for generating `turn`; `stream`: each step of the engine returns the new tokens."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0 if turn.seed is None else rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        seed=turn.seed,
        max_tokens=turn.max_tokens,
        min_tokens=min(rollout.min_response_tokens, turn.max_tokens),
        stop_token_ids=list(stop_token_ids),
        logprobs=0,  # only the sampled token's
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )
