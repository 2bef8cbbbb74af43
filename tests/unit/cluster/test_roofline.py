"""Seconds on paper: operations against torch's own count, and each bound by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from cluster.accelerators import ACCELERATORS
from cluster.config import Efficiency
from cluster.memory import EngineSize, RoleSize
from cluster.model_size import ModelSize
from cluster.roofline import Rates, Workload, card_rates, cpu_rates, generate_s, operations, push_s, score_s, update_s
from orchestrator.meta_models import size_of

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
ROLE = RoleSize(role="actor", model=MODEL, ranks=4, number_bytes=2, stage=3, trained=True, tokens=40)
WORK = Workload(samples=64, responses_per_prompt=2, prompt_tokens=4, response_tokens=6, epochs=2, mini_batches=2)
FAST = Rates(*[1e30] * 7, token_overhead_s=0.0)
"""Hardware on which nothing takes time; a test slows down one part of it."""


def test_operations_are_those_that_torch_counts() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        tie_word_embeddings=False,
    )
    size, tokens = size_of(config), 48
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, tokens, dtype=torch.long, device="meta"))
    # torch counts attention to later tokens, too; the norms of a layer are weights but no products.
    masked_half = 2 * tokens * tokens * size.heads * size.head_width * size.layers
    norms = 2 * tokens * size.layers * 2 * 64
    assert counter.get_total_flops() == operations(size, tokens, tokens) + masked_half - norms


MIXTURE = replace(MODEL, parameters=5000, decoder=4800, experts=8, experts_per_token=2, expert=60, sparse_layers=9)


def test_operations_of_a_mixture_are_those_of_the_experts_that_work() -> None:
    assert operations(MIXTURE, 10, 0) - operations(MODEL, 10, 0) == 2 * 10 * (4800 - 9 * 6 * 60 - 10 * 80)
    forward, logits = (16 * n / 10 for n in (operations(MIXTURE, 10, 6), 2 * 6 * MODEL.hidden * MODEL.vocabulary))
    trained = update_s(replace(ROLE, model=MIXTURE), WORK, replace(FAST, compute=10.0))
    assert trained == pytest.approx(2 * (3 * forward + logits))


def test_a_batch_reads_the_experts_that_it_touches() -> None:
    rates = replace(FAST, memory=10.0)
    cache = 6 * 16 * KV * 7 / 10
    touched = 8 * (1 - 0.75**16)
    expected = 6 * 2 * (5000 - 9 * 60 * (8 - touched)) / 10 + cache
    assert generate_s(replace(ENGINE, model=MIXTURE), WORK, rates, room=1e9) == pytest.approx(expected)


def test_scoring_is_bound_by_arithmetic() -> None:
    a_rank = 16 * operations(MODEL, 10, 6)
    assert score_s(ROLE, WORK, replace(FAST, compute=10.0)) == pytest.approx(a_rank / 10)


def test_scoring_is_bound_by_gathers_one_for_each_micro_batch() -> None:
    whole = 1000 * 2 * 3 / 4  # three quarters of the weights lie elsewhere
    assert score_s(ROLE, WORK, replace(FAST, link=10.0)) == pytest.approx(4 * whole / 10)  # 4 x 4 samples a rank
    assert score_s(replace(ROLE, stage=0), WORK, replace(FAST, link=10.0)) == pytest.approx(0)


def test_nodes_are_bound_by_their_network() -> None:
    spread = replace(ROLE, nodes=2)
    assert score_s(spread, WORK, replace(FAST, network=10.0)) == pytest.approx(4 * 2000 / 2 / 10)
    assert score_s(ROLE, WORK, replace(FAST, network=10.0)) == pytest.approx(0)


def test_parameters_on_the_host_come_over_pcie_for_every_micro_batch() -> None:
    offloaded = replace(ROLE, offload_parameters=True)
    assert score_s(offloaded, WORK, replace(FAST, host=10.0)) == pytest.approx(4 * 500 / 10)


def test_an_update_is_three_or_four_forward_passes_for_every_epoch() -> None:
    """And the logits are made a second time in either case."""
    rates = replace(FAST, compute=10.0)
    forward, logits = (16 * n / 10 for n in (operations(MODEL, 10, 6), 2 * 6 * MODEL.hidden * MODEL.vocabulary))
    assert update_s(ROLE, WORK, rates) == pytest.approx(2 * (3 * forward + logits))
    assert update_s(replace(ROLE, checkpointing=True), WORK, rates) == pytest.approx(2 * 4 * forward)


def test_frozen_weights_cost_no_gradients() -> None:
    lora = replace(ROLE, adapters=100)
    forward, logits = (16 * n / 10 for n in (operations(MODEL, 10, 6), 2 * 6 * MODEL.hidden * MODEL.vocabulary))
    assert update_s(lora, WORK, replace(FAST, compute=10.0)) == pytest.approx(2 * (2.1 * forward + logits))
    once = 1000 * 2 * 3 / 4 / 10
    assert update_s(lora, WORK, replace(FAST, link=10.0)) == pytest.approx(2 * 2 * 2 * 2.1 * once)
    ratio = update_s(lora, WORK, replace(FAST, memory=10.0)) / update_s(ROLE, WORK, replace(FAST, memory=10.0))
    assert ratio == pytest.approx(0.1)


def test_an_update_gathers_weights_twice_and_reduces_gradients_once() -> None:
    once = 1000 * 2 * 3 / 4 / 10
    rates = replace(FAST, link=10.0)
    assert update_s(ROLE, WORK, rates) == pytest.approx(2 * 2 * 2 * 3 * once)  # epochs, mini-batches, micro-batches
    assert update_s(replace(ROLE, stage=1), WORK, rates) == pytest.approx(2 * 2 * 2 * once)


def test_an_offloaded_optimizer_is_bound_by_its_threads_then_by_the_host() -> None:
    role = replace(ROLE, offload_optimizer=True)
    steps, traffic = 4, 250 * 30
    one = update_s(role, WORK, replace(FAST, thread=10.0))
    assert one == pytest.approx(steps * traffic / 10)
    assert update_s(replace(role, threads=4), WORK, replace(FAST, thread=10.0)) == pytest.approx(one / 4)
    assert update_s(replace(role, threads=4), WORK, replace(FAST, thread=10.0, host_memory=60.0)) == pytest.approx(
        steps * traffic / 15
    )


def test_offloaded_gradients_cross_pcie_for_every_micro_batch() -> None:
    role = replace(ROLE, offload_optimizer=True)
    # Two micro-batches: out, in again for the sum, out; then the new weights in.
    assert update_s(role, WORK, replace(FAST, host=10.0)) == pytest.approx(4 * 250 * (3 * 4 + 2) / 10)


def test_an_optimizer_on_the_card_is_bound_by_its_memory() -> None:
    assert update_s(ROLE, WORK, replace(FAST, memory=10.0)) == pytest.approx(4 * 250 * 30 / 10)


def test_what_sleeps_goes_to_the_host_and_back_once_a_step() -> None:
    extra = update_s(replace(ROLE, sleep=True), WORK, replace(FAST, host=10.0))
    assert extra == pytest.approx(2 * 250 * 12 / 10)  # gradients are dead by then


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
    half = generate_s(ENGINE, WORK, rates, room=8 * KV * 10)
    assert half == pytest.approx(2 * 6 * (2000 + 8 * KV * 7) / 10)
    assert generate_s(replace(ENGINE, max_sequences=8), WORK, rates, room=1e9) == pytest.approx(half)


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


def test_a_push_is_a_gather_and_a_copy() -> None:
    assert push_s(ROLE, replace(FAST, link=10.0), other_nodes=False) == pytest.approx((1500 + 2000) / 10)
    assert push_s(ROLE, replace(FAST, network=10.0), other_nodes=True) == pytest.approx(200)


def test_rates_are_the_published_ones_times_the_efficiency() -> None:
    shares = Efficiency(
        compute=0.5,
        memory=0.25,
        wire=0.1,
        token_overhead_s=0.001,
        network_gb_s=10,
        thread_gb_s=2,
        host_memory_gb_s=20,
    )
    card = card_rates(ACCELERATORS["A800-80GB"], shares)
    assert card == Rates(156e12, 2039e9 / 4, 20e9, 3.2e9, 1e9, 2e9, 20e9, 0.001)
    machine = cpu_rates(32e9, 4, shares)
    assert machine.compute == 4e9 and machine.memory == 5e9 and machine.host_memory == 20e9
