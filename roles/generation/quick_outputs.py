"""What vLLM makes of each new token of a running request, without what nobody reads: its core's outputs flow in, the
requests that have ended flow out as before.

vLLM does some hundred small steps in Python for each token that it samples; for a small model on a GPU they take longer
than the model. Of a rollout only the whole response counts, so that until then a token and its log-probability are put
down and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vllm.logprobs import FlatLogprobs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import OutputProcessor, RequestState

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.outputs import LogprobsLists


class StepNumbers:
    """The log-probabilities that one step of the engine made, in the place of vLLM's, which cuts three arrays for each
    request."""

    def __init__(self, made: LogprobsLists) -> None:
        self.made = made
        self.sampled: list[float] = made.logprobs[:, 0].tolist()
        """Those of the sampled tokens, one request after the other."""

    def slice_request(self, first: int, count: int) -> RequestNumbers:
        """Those of a request whose `count` tokens begin with number `first` of the step."""
        return RequestNumbers(self, first, count)


class RequestNumbers:
    """A request's share of a step's; as an iterable it is what vLLM's own slice is."""

    __slots__ = ("count", "first", "step")

    def __init__(self, step: StepNumbers, first: int, count: int) -> None:
        self.step, self.first, self.count = step, first, count

    @property
    def sampled(self) -> list[float]:
        return self.step.sampled[self.first : self.first + self.count]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.step.made.slice_request(self.first, self.count))


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
            state.logprobs_processor.logprobs.logprobs += output.new_logprobs.sampled
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
    """Let `engine`, whose core runs in this process, go this way. Not with stop strings: they are looked for in the
    text of each token."""
    if engine.output_processor.tokenizer is not None:
        return
    engine.output_processor.__class__ = QuickOutputs
    scheduler: Any = engine.engine_core.engine_core.scheduler
    update = scheduler.update_from_output

    def update_from_output(scheduled: Any, made: Any) -> Any:
        if made.logprobs is not None:
            made.logprobs = StepNumbers(made.logprobs)
        return update(scheduled, made)

    scheduler.update_from_output = update_from_output
