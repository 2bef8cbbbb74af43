"""Continuous batching against a loop over single tokens, and its properties; each bound of an engine by hand."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cluster.estimate.engine_memory import EngineSize
from cluster.estimate.generation import GenerationPace, Request, finish_times, generate_s, shares
from cluster.estimate.lengths import fixed, lognormal
from cluster.estimate.model_size import ModelSize
from cluster.estimate.roofline import Rates, Workload, operations

MODEL = ModelSize(
    parameters=1000,
    layer=80,
    embedding=100,
    layers=10,
    hidden=8,
    intermediate=16,
    heads=2,
    kv_heads=1,
    head_width=4,
    vocabulary=25,
)
WORK = Workload(samples=64, responses_per_prompt=2, prompt_tokens=4, response_tokens=6, epochs=2, mini_batches=2)
FAST = Rates(*[1e30] * 7, token_overhead_s=0.0)
"""Hardware on which nothing takes time; a test slows down one part of it."""

ENGINE = EngineSize(
    model=MODEL, number_bytes=2, parallel=1, utilization=0.9, sleep=0, longest=10, number=4, max_sequences=256
)
KV = 2 * 10 * 1 * 4 * 2
"""Bytes of a token: keys and values, layers, heads, width, bytes."""


def test_decoding_reads_weights_and_the_cache_so_far_for_every_token() -> None:
    rates = replace(FAST, memory=10.0)
    everyone = generate_s(ENGINE, WORK, rates, room=1e9)
    assert everyone == pytest.approx(6 * (2000 + 16 * KV * (4 + 3)) / 10)


def test_a_small_cache_makes_waves() -> None:
    rates = replace(FAST, memory=10.0)
    alone = replace(WORK, responses_per_prompt=1)
    half = generate_s(ENGINE, alone, rates, room=8 * KV * 10)
    assert half == pytest.approx(2 * 6 * (2000 + 8 * KV * 7) / 10)
    assert generate_s(replace(ENGINE, max_sequences=8), alone, rates, room=1e9) == pytest.approx(half)
    assert generate_s(replace(ENGINE, max_sequences=8), WORK, rates, room=1e9) == pytest.approx(half)


def test_responses_to_a_prompt_share_its_room() -> None:
    rates = replace(FAST, memory=10.0)
    room = KV * (4 * 4 + 8 * 6)  # four prompts and their eight responses
    assert generate_s(ENGINE, WORK, rates, room) == pytest.approx(2 * 6 * (2000 + 8 * KV * 7) / 10)
    alone = replace(WORK, responses_per_prompt=1)
    assert generate_s(ENGINE, alone, rates, room) > generate_s(ENGINE, WORK, rates, room)


def test_prompts_are_read_once_for_all_their_responses() -> None:
    rates = replace(FAST, compute=10.0)
    prefill = 8 * operations(MODEL, 4, 0) / 10
    decode = 6 * 16 * operations(MODEL, 1, 1) / 10
    assert generate_s(ENGINE, WORK, rates, room=1e9) == pytest.approx(prefill + decode)


def test_tensor_parallel_engines_share_the_reading_and_pay_for_sums() -> None:
    parallel = replace(ENGINE, parallel=2)
    summed = 4 * 10 * 16 * 8 * 2 / 2
    assert generate_s(parallel, WORK, replace(FAST, link=10.0), room=1e9) == pytest.approx(6 * summed / 10)


def test_every_token_has_its_overhead() -> None:
    assert generate_s(ENGINE, WORK, replace(FAST, token_overhead_s=0.5), room=1e9) == pytest.approx(3)


MIXTURE = replace(MODEL, parameters=5000, decoder=4800, experts=8, experts_per_token=2, expert=60, sparse_layers=9)


def test_a_batch_reads_the_experts_that_it_touches() -> None:
    rates = replace(FAST, memory=10.0)
    cache = 6 * 16 * KV * 7 / 10
    touched = 8 * (1 - 0.75**16)
    expected = 6 * 2 * (5000 - 9 * 60 * (8 - touched)) / 10 + cache
    assert generate_s(replace(ENGINE, model=MIXTURE), WORK, rates, room=1e9) == pytest.approx(expected)


def test_without_graphs_every_layer_is_launched_and_tensor_parallel_sums_have_a_latency() -> None:
    assert generate_s(replace(ENGINE, eager=True), WORK, replace(FAST, layer_s=0.5), room=1e9) == pytest.approx(6 * 5)
    assert generate_s(ENGINE, WORK, replace(FAST, layer_s=0.5), room=1e9) == pytest.approx(0)
    late = generate_s(replace(ENGINE, parallel=2), WORK, replace(FAST, collective_s=0.5), room=1e9)
    assert late == pytest.approx(6 * 2 * 10 * 0.5)


PACE = GenerationPace(
    weights_s=1.0, sequence_s=0.3, summed_s=0.01, overhead_s=0.2, launch_s=1.1, cached_s=0.002, prefill_s=0.7
)


def token_by_token(
    pace: GenerationPace, requests: list[Request], prompt_tokens: int, room: int, max_sequences: int
) -> list[float]:
    """The same, one iteration at a time."""
    done, running, seconds, read = [0.0] * len(requests), {}, 0.0, set()
    following = 0
    while following < len(requests) or running:
        while following < len(requests) and len(running) < max_sequences:
            candidate = [*running, following]
            held = sum(requests[n].tokens for n in candidate)
            held += prompt_tokens * len({requests[n].prompt for n in candidate})
            if running and held > room:
                break
            if requests[following].prompt not in read:
                read.add(requests[following].prompt)
                seconds += pace.prefill_s
            running[following] = 0
            following += 1
        cached = sum(prompt_tokens + made + 0.5 for made in running.values())  # half of the token under way
        seconds += pace.iteration_s(len(running)) + pace.cached_s * cached
        for number in list(running):
            running[number] += 1
            if running[number] == requests[number].tokens:
                del running[number]
                done[number] = seconds
    return done


@pytest.mark.parametrize("seed", range(20))
def test_continuous_batching_against_a_loop_over_tokens(seed: int) -> None:
    chance = random.Random(seed)
    each, prompt = chance.choice([1, 1, 3, 4]), chance.randrange(0, 30)
    requests = [Request(n // each, chance.randrange(1, 60)) for n in range(chance.randrange(1, 40))]
    room, most = chance.choice([20, 100, 400, 10_000]), chance.choice([1, 4, 16, 256])
    found = finish_times(PACE, requests, prompt, room=room, max_sequences=most)
    assert found == pytest.approx(token_by_token(PACE, requests, prompt, room, most))


def test_equal_lengths_are_one_closed_form() -> None:
    batch, prompt, tokens = 12, 5, 40
    found = finish_times(PACE, [Request(n, tokens) for n in range(batch)], prompt, room=1e9, max_sequences=256)
    iteration = max(12 * 0.3 + 12 * 0.01, 1.1) + 0.2
    reads = 0.002 * batch * (prompt * tokens + tokens**2 / 2)
    assert found == pytest.approx([12 * 0.7 + tokens * iteration + reads] * batch)


def test_the_longest_response_bounds_from_below_and_one_at_a_time_from_above() -> None:
    lengths = lognormal(100, 1.0, 1, 800).draw(64, 1)
    requests = [Request(n, tokens) for n, tokens in enumerate(lengths)]
    found = max(finish_times(PACE, requests, 5, room=1e9, max_sequences=256))
    assert found >= max(lengths) * PACE.iteration_s(1)
    assert found < max(finish_times(PACE, requests, 5, room=1e9, max_sequences=1))


def test_the_tail_runs_at_a_small_batch() -> None:
    """With the same tokens in all, a step waits for its longest response."""
    rates = replace(FAST, memory=10.0)
    even = replace(WORK, response_tokens=100, responses=fixed(100))
    uneven = replace(WORK, response_tokens=100, responses=lognormal(100, 1.0, 1, 1000))
    assert uneven.lengths.mean == pytest.approx(100)
    assert generate_s(ENGINE, uneven, rates, 1e9) > 2 * generate_s(ENGINE, even, rates, 1e9)


def test_more_engines_room_or_sequences_are_never_slower() -> None:
    rates = replace(FAST, memory=10.0, compute=1e4, token_overhead_s=0.1)
    work = replace(WORK, response_tokens=100, responses=lognormal(100, 1.0, 1, 1000))
    engines = [generate_s(replace(ENGINE, number=number), work, rates, 1e9) for number in (1, 2, 4, 8, 16, 64)]
    assert engines == sorted(engines, reverse=True)
    room = [generate_s(ENGINE, work, rates, KV * tokens) for tokens in (500, 1000, 3000, 10_000, 100_000)]
    assert room == sorted(room, reverse=True)
    batch = [generate_s(replace(ENGINE, max_sequences=n), work, rates, 1e9) for n in (1, 2, 4, 8, 64)]
    assert batch == sorted(batch, reverse=True)


def test_seeds_decide_and_every_response_is_somebodys() -> None:
    work = replace(WORK, samples=70, response_tokens=100, responses=lognormal(100, 1.0, 1, 1000))
    once, again, other = shares(ENGINE, work, 1), shares(ENGINE, work, 1), shares(ENGINE, work, 2)
    assert once == again != other
    assert sorted(len(own) for own in once) == [17, 17, 18, 18]
    drawn = [sorted(request.tokens for own in each for request in own) for each in (once, other)]
    assert drawn[0] == drawn[1]
    assert [request.prompt for own in once for request in own] == [row // 2 for row in range(70)]
