"""vLLM's parameters of one request: the sampling keys of `rollout` and a turn, or what a judge is asked for, flow in;
SamplingParams flow out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from roles.config.rollout import RolloutConfig
from roles.generation.conversation import Turn

if TYPE_CHECKING:
    from vllm import SamplingParams


@dataclass(frozen=True, slots=True)
class Reply:
    """How a question is answered: `Reply(max_tokens=1, candidates=(65, 66))`."""

    max_tokens: int
    temperature: float = 1.0
    seed: int | None = None
    candidates: tuple[int, ...] = ()
    """Tokens whose log-probabilities are wanted, of the first token of the answer."""


def reply_sampling(reply: Reply, stop_token_ids: Sequence[int]) -> SamplingParams:
    """vLLM's parameters for an answer; log-probabilities are those at temperature 1."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=1.0 if reply.candidates else reply.temperature,
        seed=reply.seed,
        max_tokens=reply.max_tokens,
        stop_token_ids=list(stop_token_ids),
        logprobs=len(reply.candidates) or None,
        logprob_token_ids=list(reply.candidates) or None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


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
        min_p=rollout.min_p,
        seed=turn.seed,
        max_tokens=turn.max_tokens,
        min_tokens=min(rollout.min_response_tokens, turn.max_tokens),
        stop_token_ids=list(stop_token_ids),
        stop=list(rollout.stop),
        include_stop_str_in_output=True,
        logprobs=0,  # only the sampled token's
        flat_logprobs=True,
        detokenize=bool(rollout.stop),
        output_kind=RequestOutputKind.DELTA if stream else RequestOutputKind.FINAL_ONLY,
    )
