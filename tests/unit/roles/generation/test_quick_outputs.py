"""vLLM's outputs made the quick way against vLLM's own, fed with the same tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists

from roles.generation.quick_outputs import QuickOutputs, quicken

TOKENS = {"0": [5, 6, 7, 8], "1": [9], "2": [3, 4]}
"""Request → its response."""


def answers(kind: type[OutputProcessor]) -> dict[str, tuple[Any, ...]]:
    processor = kind(tokenizer=None, log_stats=False)
    for name in TOKENS:
        processor.add_request(request(name), None, None, 0)
    found = {}
    for place in range(4):
        going = [name for name, tokens in TOKENS.items() if place < len(tokens)]
        for output in processor.process_outputs([token(name, place) for name in going]).request_outputs:
            (answer,) = output.outputs
            flat: Any = answer.logprobs
            assert answer.cumulative_logprob is not None
            rest = (answer.finish_reason, output.num_cached_tokens, output.prompt_token_ids)
            found[output.request_id] = (list(answer.token_ids), list(flat.logprobs), *rest)
    assert not processor.has_unfinished_requests()
    return found


def request(name: str) -> EngineCoreRequest:
    how = SamplingParams(
        logprobs=0, flat_logprobs=True, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, max_tokens=9
    )
    return EngineCoreRequest(
        request_id=name,
        external_req_id=name,
        prompt_token_ids=[1, 2],
        mm_features=None,
        sampling_params=how,
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def token(name: str, place: int) -> EngineCoreOutput:
    tokens = TOKENS[name]
    number = -0.25 * (place + 1) - int(name)
    numbers = LogprobsLists(
        numpy.array([[tokens[place]]]), numpy.array([[number]], dtype=numpy.float32), numpy.array([1]), None
    )
    end = FinishReason.STOP if name == "0" else FinishReason.LENGTH
    return EngineCoreOutput(
        request_id=name,
        new_token_ids=[tokens[place]],
        new_logprobs=numbers,
        finish_reason=end if place + 1 == len(tokens) else None,
        prefill_stats=PrefillStats(num_prompt_tokens=2, num_cached_tokens=1) if place == 0 else None,
    )


def test_responses_are_those_of_vllm() -> None:
    assert answers(QuickOutputs) == answers(OutputProcessor)
    assert answers(QuickOutputs)["0"] == ([5, 6, 7, 8], [-0.25, -0.5, -0.75, -1.0], "stop", 1, [1, 2])


@pytest.mark.parametrize(("tokenizer", "kind"), [(None, QuickOutputs), ("stop strings", OutputProcessor)])
def test_engines_that_look_for_stop_strings_stay_as_they_are(tokenizer: Any, kind: type[OutputProcessor]) -> None:
    engine: Any = SimpleNamespace(output_processor=OutputProcessor(tokenizer, log_stats=False))
    quicken(engine)
    assert type(engine.output_processor) is kind
