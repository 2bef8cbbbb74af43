"""Seconds on paper: operations against torch's own count, and each bound by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig

from cluster.config import CpuCosts, Efficiency
from cluster.estimate.lengths import Lengths
from cluster.estimate.memory import RoleSize
from cluster.estimate.model_size import ModelSize
from cluster.estimate.roofline import (
    OWN_CARD_LAYER_S,
    Rates,
    Workload,
    card_rates,
    cpu_rates,
    operations,
    push_s,
    score_s,
    update_s,
)
from cluster.placement.accelerators import ACCELERATORS
from orchestrator.sizes.meta_models import size_of

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


def test_what_optimizer_steps_learn_beside_has_micro_batches_of_its_own_and_no_optimizer_steps() -> None:
    beside = replace(WORK, samples=32, responses_per_prompt=1)
    half = replace(WORK, samples=32)
    for rates in (replace(FAST, compute=10.0), replace(FAST, link=10.0)):
        assert update_s(ROLE, WORK, rates, beside) == pytest.approx(1.5 * update_s(ROLE, WORK, rates))
        assert update_s(ROLE, half, rates) == pytest.approx(0.5 * update_s(ROLE, WORK, rates))
    adam = replace(FAST, memory=10.0)
    assert update_s(ROLE, WORK, adam, beside) == pytest.approx(update_s(ROLE, WORK, adam))


MIXTURE = replace(MODEL, parameters=5000, decoder=4800, experts=8, experts_per_token=2, expert=60, sparse_layers=9)


def test_operations_of_a_mixture_are_those_of_the_experts_that_work() -> None:
    assert operations(MIXTURE, 10, 0) - operations(MODEL, 10, 0) == 2 * 10 * (4800 - 9 * 6 * 60 - 10 * 80)
    forward, logits = (16 * n / 10 for n in (operations(MIXTURE, 10, 6), 2 * 6 * MODEL.hidden * MODEL.vocabulary))
    trained = update_s(replace(ROLE, model=MIXTURE), WORK, replace(FAST, compute=10.0))
    assert trained == pytest.approx(2 * (3 * forward + logits))


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


def test_a_push_is_a_gather_and_a_copy() -> None:
    assert push_s(ROLE, replace(FAST, link=10.0), other_nodes=False) == pytest.approx((1500 + 2000) / 10)
    assert push_s(ROLE, replace(FAST, network=10.0), other_nodes=True) == pytest.approx(200)


def test_a_sender_alone_in_its_node_has_one_card_s_share_of_the_network() -> None:
    rates = replace(FAST, network=10.0)
    assert push_s(ROLE, rates, other_nodes=True, cards=8) == pytest.approx(8 * 200)


def test_a_push_hands_over_every_layer_and_copies_every_weight() -> None:
    assert push_s(ROLE, replace(FAST, push_layer_s=0.5), other_nodes=True) == pytest.approx(
        11 * 0.5
    )  # and what is around
    assert push_s(ROLE, replace(FAST, memory=10.0), other_nodes=False) == pytest.approx(8 * 2000 / 10)


def test_a_rank_that_holds_all_weights_hands_layers_over_without_waiting_for_peers() -> None:
    alone, quick = replace(ROLE, ranks=1), replace(FAST, push_layer_s=0.001)
    assert push_s(alone, replace(FAST, push_layer_s=0.5), other_nodes=False) == pytest.approx(11 * OWN_CARD_LAYER_S)
    assert push_s(alone, quick, other_nodes=False) == pytest.approx(11 * 0.001)


def test_a_forward_pass_is_no_faster_than_its_layers_are_launched() -> None:
    launched = 10 * (0.5 + 0.1)  # layers; kernels, and the latency of a gather
    rates = replace(FAST, layer_s=0.5, collective_s=0.1)
    assert score_s(ROLE, WORK, rates) == pytest.approx(4 * launched)  # micro-batches
    assert score_s(replace(ROLE, stage=0), WORK, rates) == pytest.approx(4 * 5)
    assert update_s(ROLE, WORK, rates) == pytest.approx(2 * 2 * 2 * 3 * launched)


def test_the_first_layers_gather_and_the_last_layers_arithmetic_are_not_hidden() -> None:
    gathered, computed = 4 * 1500 / 10, 16 * operations(MODEL, 10, 6) / 10
    both = score_s(ROLE, WORK, replace(FAST, link=10.0, compute=10.0))
    assert both == pytest.approx(max(gathered + computed / 10, computed + gathered / 10))
    assert max(gathered, computed) < both < gathered + computed


def test_gradients_of_lower_stages_hide_behind_the_last_micro_batch_alone() -> None:
    rates, role = replace(FAST, link=10.0, compute=1e5), replace(ROLE, stage=1)
    computed = update_s(role, WORK, replace(FAST, compute=1e5)) / 4  # an optimizer step
    assert update_s(role, WORK, rates) == pytest.approx(4 * (computed + 2 * 1500 / 10 - computed / 2))


def test_the_rank_with_the_longest_sample_is_waited_for() -> None:
    one_long = Lengths((0.0, 0.99, 1.0), (1.0, 1.0, 1000.0))
    rates, role = replace(FAST, compute=10.0), replace(ROLE, stage=0)
    uneven = replace(WORK, samples=4, prompt_tokens=4, response_tokens=one_long.mean, responses=one_long)
    longest = one_long.at(1 - 0.5 / 4)
    assert score_s(role, uneven, rates) >= operations(MODEL, 4 + longest, longest) / 10


def test_equal_lengths_are_what_their_mean_says() -> None:
    rates = replace(FAST, compute=10.0)
    spread = replace(WORK, responses=Lengths((0.0, 1.0), (6.0, 6.0)))
    assert score_s(ROLE, spread, rates) == score_s(ROLE, WORK, rates)
    assert update_s(ROLE, spread, rates) == update_s(ROLE, WORK, rates)


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
    card = card_rates(ACCELERATORS["A800-80GB"], "bfloat16", shares)
    assert card == Rates(156e12, 2039e9 / 4, 20e9, 3.2e9, 1e9, 2e9, 20e9, 0.001)
    assert card_rates(ACCELERATORS["A800-80GB"], "bfloat16", shares.model_copy(update={"layer_s": 0.5})).layer_s == 0.5
    wide = card_rates(ACCELERATORS["A800-80GB"], "float32", shares)
    assert wide == replace(card, compute=9.75e12), "float32 has no tensor cores: 19.5 of 312"
    costs = CpuCosts(link_gb_s=3, adam_bytes=60)
    machine = cpu_rates(32e9, 16e9, 4, shares.model_copy(update={"cpu": costs}))
    assert machine.compute == 4e9 and machine.memory == 4e9 and machine.host_memory == 16e9
    assert machine.link == 3e9, "two processes of one machine exchange over gloo, far slower than memory"
    own = ROLE.learning / ROLE.ranks
    slower = update_s(ROLE, WORK, replace(machine, adam_bytes=90)) - update_s(ROLE, WORK, machine)
    assert slower == pytest.approx(WORK.epochs * WORK.mini_batches * own * 30 / 4e9)
