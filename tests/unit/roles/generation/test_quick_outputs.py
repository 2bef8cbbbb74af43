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

from roles.generation.quick_outputs import QuickOutputs, StepNumbers, quicken

TOKENS = {"0": [5, 6, 7, 8], "1": [9], "2": [3, 4, 5], "no numbers": [3, 4, 5], "stream": [6, 7, 8], "gone": [1, 2, 3]}
"""Request → its response; what `gone` says comes after it was given up."""
GONE = "gone"


def answers(kind: type[OutputProcessor]) -> dict[str, list[tuple[Any, ...]]]:
    """What each step of an engine says of each request. From its second step on it makes up to two tokens a step."""
    processor = kind(tokenizer=None, log_stats=False)
    for name in TOKENS:
        if name != GONE:
            processor.add_request(request(name), None, None, 0)
    found: dict[str, list[tuple[Any, ...]]] = {}
    for begin, end in ((0, 1), (1, 3), (3, 5)):
        going = [name for name, tokens in TOKENS.items() if begin < len(tokens)]
        for output in processor.process_outputs([made(name, begin, end) for name in going]).request_outputs:
            (answer,) = output.outputs
            numbers: Any = answer.logprobs
            rest = (answer.finish_reason, output.num_cached_tokens, output.prompt_token_ids)
            said = (list(answer.token_ids), numbers and list(numbers.logprobs), *rest)
            found.setdefault(output.request_id, []).append(said)
    assert not processor.has_unfinished_requests()
    return found


def request(name: str) -> EngineCoreRequest:
    how = SamplingParams(
        logprobs=None if name == "no numbers" else 0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if name == "stream" else RequestOutputKind.FINAL_ONLY,
        max_tokens=9,
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


def made(name: str, begin: int, end: int) -> EngineCoreOutput:
    tokens = TOKENS[name][begin:end]
    numbers = StepNumbers(numbers_of([99, *tokens])).slice_request(1, len(tokens))  # another request's come first
    reason = FinishReason.STOP if name == "0" else FinishReason.LENGTH
    return EngineCoreOutput(
        request_id=name,
        new_token_ids=tokens,
        new_logprobs=None if name == "no numbers" else numbers,
        finish_reason=reason if end >= len(TOKENS[name]) else None,
        prefill_stats=PrefillStats(num_prompt_tokens=2, num_cached_tokens=1) if begin == 0 else None,
    )


def numbers_of(tokens: list[int]) -> LogprobsLists:
    """What vLLM makes of a step with these tokens."""
    return LogprobsLists(
        numpy.array([[token] for token in tokens]),
        numpy.array([[-0.25 * token] for token in tokens], dtype=numpy.float32),
        numpy.array([1] * len(tokens)),
        None,
    )


def test_responses_are_those_of_vllm() -> None:
    assert answers(QuickOutputs) == answers(OutputProcessor)
    assert answers(QuickOutputs)["0"] == [([5, 6, 7, 8], [-1.25, -1.5, -1.75, -2.0], "stop", 1, [1, 2])]
    assert len(answers(QuickOutputs)["stream"]) == 2


def test_tokens_in_between_take_the_quick_way(monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[tuple[str, list[int]]] = []
    plain = OutputProcessor.process_outputs

    def noted(self: Any, outputs: Any, *args: Any, **options: Any) -> Any:
        slow.extend((output.request_id, output.new_token_ids) for output in outputs)
        return plain(self, outputs, *args, **options)

    monkeypatch.setattr(OutputProcessor, "process_outputs", noted)
    answers(QuickOutputs)
    assert ("0", [6, 7]) not in slow and ("0", [5]) in slow and ("0", [8]) in slow


def test_a_share_of_a_steps_numbers_is_what_vllm_would_cut() -> None:
    made = numbers_of([5, 6, 7, 8])
    share = StepNumbers(made).slice_request(1, 2)
    assert share.sampled == [-1.5, -1.75]
    for ours, theirs in zip(share, made.slice_request(1, 2), strict=True):
        numpy.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("tokenizer", "quick"), [(None, True), ("stop strings", False)])
def test_engines_that_look_for_stop_strings_stay_as_they_are(tokenizer: Any, quick: bool) -> None:
    scheduler = SimpleNamespace(update_from_output=lambda scheduled, made: (scheduled, made.logprobs))
    engine: Any = SimpleNamespace(
        output_processor=OutputProcessor(tokenizer, log_stats=False),
        engine_core=SimpleNamespace(engine_core=SimpleNamespace(scheduler=scheduler)),
    )
    quicken(engine)
    assert type(engine.output_processor) is (QuickOutputs if quick else OutputProcessor)
    scheduled, numbers = scheduler.update_from_output("scheduled", SimpleNamespace(logprobs=numbers_of([5])))
    assert scheduled == "scheduled"
    assert type(numbers) is (StepNumbers if quick else LogprobsLists)
    assert scheduler.update_from_output("scheduled", SimpleNamespace(logprobs=None)) == ("scheduled", None)
