"""What vLLM makes of each new token of a running request, without what nobody reads: its core's outputs flow in, the
requests that have ended flow out as before.

vLLM does some hundred small steps in Python for each token that it samples; for a small model on a GPU they take longer
than the model. Of a rollout only the whole response counts, so that until then a token and its log-probability are put
down and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import OutputProcessor, RequestState

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


class QuickOutputs(OutputProcessor):
    """vLLM's own, but for tokens between the first and the last of a response."""

    def process_outputs(self, engine_core_outputs: Any, *args: Any, **options: Any) -> Any:
        """The quick way is for requests that return their output at its end and want flat log-probabilities."""
        others = []
        for output in engine_core_outputs:
            state = self.request_states.get(output.request_id)
            if state is None or state.is_prefilling or output.finish_reason is not None or not _wants_numbers(state):
                others.append(output)
                continue
            state.detokenizer.token_ids += output.new_token_ids
            state.logprobs_processor.logprobs.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
        return super().process_outputs(others, *args, **options)


def _wants_numbers(state: RequestState) -> bool:
    """Whether all that is asked for is the whole response with the log-probabilities of its tokens."""
    numbers = state.logprobs_processor
    return (
        state.output_kind is RequestOutputKind.FINAL_ONLY
        and numbers is not None
        and numbers.num_logprobs == 0
        and isinstance(numbers.logprobs, FlatLogprobs)
    )


def quicken(engine: LLMEngine) -> None:
    """Let `engine` go this way. Not with stop strings: they are looked for in the text of each token."""
    if engine.output_processor.tokenizer is None:
        engine.output_processor.__class__ = QuickOutputs
