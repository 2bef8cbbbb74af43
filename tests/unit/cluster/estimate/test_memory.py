"""Bytes against DeepSpeed's own estimators and against arithmetic by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from cluster.estimate.engine_memory import EngineSize, engine, engine_host, staging
from cluster.estimate.memory import (
    GIB,
    LOGITS_BLOCK,
    LOGITS_NARROWEST,
    REDUCE_BUCKET,
    RoleSize,
    host_states,
    rank_without_gpu,
    states,
    working,
)
from cluster.estimate.model_size import ModelSize
from roles.models import scoring_head as head
from roles.zero.settings import CARD_BUCKET

SEVENTY_B = ModelSize(70_553_706_496, 855_654_400, 1_050_673_152, 80, 8192, 28672, 64, 8, 128, 128256)
SMALL = ModelSize(1_000_000, 100_000, 50_000, 4, 64, 256, 4, 2, 16, 500)
ACTOR = RoleSize("actor", SEVENTY_B, ranks=8, number_bytes=2, stage=3, trained=True)


@pytest.mark.parametrize("ranks", [1, 8, 32])
@pytest.mark.parametrize("offload", [True, False])
def test_stage_3_against_deepspeeds_estimator(ranks: int, offload: bool) -> None:
    """Its figure has, besides the states, the largest layer in float32."""
    role = replace(ACTOR, ranks=ranks, offload_optimizer=offload)
    host, gpu, layer = estimate_zero3_model_states_mem_needs(
        SEVENTY_B.parameters, SEVENTY_B.layer, ranks, 1, cpu_offload=offload, cpu_offload_params=False
    )
    ours = states(role)
    ours.pop("reduction bucket", None)  # which it leaves out
    assert sum(ours.values()) == pytest.approx(gpu - layer, rel=1e-6)
    if offload:
        # It adds half again for buffers, and counts gradients once.
        held = host_states(role)
        gradients = ranks * held.pop("offloaded gradients (float32)")
        once = 4 * SEVENTY_B.parameters
        assert ranks * sum(held.values()) + once == pytest.approx(host / 1.5, rel=1e-6)
        assert 2 * once < gradients < 2 * 2 * once, "two buffers, pinned in powers of two"


@pytest.mark.parametrize("ranks", [1, 8])
def test_stage_2_against_deepspeeds_estimator(ranks: int) -> None:
    """It says 4 bytes a parameter for float16 weights and gradients whole, and 16 for the rest, sharded."""
    _, gpu = estimate_zero2_model_states_mem_needs(SEVENTY_B.parameters, ranks, 1, cpu_offload=False)
    ours = sum(states(replace(ACTOR, stage=2, ranks=ranks)).values())
    assert ours == pytest.approx(gpu, rel=0.15)


def test_full_adam_for_70b_does_not_fit_on_eight_cards() -> None:
    """The question of OpenRLHF#329: 16 bytes a parameter are 140 GB a GPU, before anything is computed."""
    assert sum(states(ACTOR).values()) > 140e9
    assert sum(states(replace(ACTOR, offload_optimizer=True)).values()) < 20e9


def test_what_sleeps_is_on_the_host_between_updates_and_on_the_card_in_them() -> None:
    asleep = replace(ACTOR, sleep=True)
    assert states(asleep) == states(ACTOR)
    assert states(asleep, training=False) == {"weights": states(ACTOR)["weights"]}
    optimizer = states(ACTOR)["optimizer (float32 weights and moments)"]
    assert optimizer < host_states(asleep)["sleeping optimizer"] < 2 * optimizer
    assert set(host_states(asleep)) == {"sleeping optimizer"}  # gradients are dead by then


def test_a_checkpoint_that_is_written_meanwhile_is_copied_to_the_host() -> None:
    """12 bytes a trained number, shared by the ranks, on machines with cards and without; nothing for a frozen role."""
    item = "copy of a checkpoint that is written"
    behind = replace(ACTOR, saved_behind=True)
    assert host_states(behind) == {item: 12 * SEVENTY_B.parameters / 8} and host_states(ACTOR) == {}
    assert host_states(replace(behind, averaged=True)) == {item: 16 * SEVENTY_B.parameters / 8}
    assert host_states(replace(behind, trained=False)) == {}
    small = replace(behind, model=SMALL, device="cpu")
    without = rank_without_gpu(replace(small, saved_behind=False))
    assert rank_without_gpu(small) == {**without, item: 12 * SMALL.parameters / 8}


def test_a_pinned_copy_takes_a_power_of_two() -> None:
    """Three numbers for each parameter, in groups of a billion: 2.5 billion of a rank are three copies of 3.3 GB."""
    large = replace(ACTOR, model=replace(SMALL, parameters=5_000_000_000), ranks=2, sleep=True)
    assert host_states(large)["sleeping optimizer"] == 3 * 3 * 2**32
    small = replace(ACTOR, model=SMALL, ranks=1, number_bytes=4, sleep=True)
    assert host_states(small)["sleeping optimizer"] == 2 * 2**22  # 4 MB fit into 4 MiB


def test_frozen_and_unsharded() -> None:
    frozen = RoleSize("reference", SMALL, ranks=4, number_bytes=2, stage=3, trained=False)
    assert states(frozen) == {"weights": 500_000.0}
    assert states(replace(frozen, stage=2)) == {"weights": 2_000_000.0}
    assert states(replace(frozen, offload_parameters=True)) == {"weights": 0.0}
    assert host_states(replace(frozen, offload_parameters=True)) == {"offloaded weights": 500_000.0}


def test_float32_keeps_no_second_copy_of_the_weights() -> None:
    role = RoleSize("actor", SMALL, ranks=1, number_bytes=4, stage=3, trained=True, device="cpu")
    assert sum(states(role).values()) == 16 * SMALL.parameters


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adapters_alone_have_gradients_and_moments(stage: int) -> None:
    whole = RoleSize("actor", SMALL, ranks=4, number_bytes=2, stage=stage, trained=True)
    lora = replace(whole, adapters=10_000)
    ours, full = states(lora), states(whole)
    shards = {0: (1, 1, 1), 1: (1, 1, 4), 2: (1, 4, 4), 3: (4, 4, 4)}[stage]
    assert ours["weights"] == 2 * 1_010_000 / shards[0]
    assert ours["gradients (float32)"] == 4 * 10_000 / shards[1] == full["gradients (float32)"] / 100
    assert ours["optimizer (float32 weights and moments)"] == 12 * 10_000 / shards[2]
    assert working(lora, training=True)["optimizer's step"] == 4 * 10_000 / 4
    asleep = host_states(replace(lora, sleep=True))
    assert sum(asleep.values()) == 3 * 2**14  # of 10,000 bytes each
    saved = working(whole, training=True)["head and a block of logits"]
    assert saved - working(lora, training=True)["head and a block of logits"] == 2 * SMALL.embedding


@pytest.mark.parametrize(
    ("stage", "tokens", "checkpointing", "measured"),
    [(3, 32400, False, 56.1), (3, 16300, False, 37.4), (2, 16300, False, 37.4), (3, 32400, True, 23.4)],
)
def test_fused_layers_against_a_card(stage: int, tokens: int, checkpointing: bool, measured: float) -> None:
    """GiB that an update of 1.2B allocated at most on an H100 (tests/gpu/README.md), but for the optimizer's step."""
    model = ModelSize(1_074_268_160, 60_821_504, 100_663_296, 16, 2048, 8192, 32, 8, 64, 49152)
    role = RoleSize("actor", model, 1, 2, stage, True, checkpointing=checkpointing, fused=True, tokens=tokens)
    account = states(role) | working(role, training=True)
    del account["optimizer's step"]
    assert sum(account.values()) / GIB == pytest.approx(measured, rel=0.02)


def test_activations_by_hand() -> None:
    role = RoleSize("actor", SMALL, ranks=1, number_bytes=2, stage=3, trained=True, tokens=100, scored_share=0.5)
    layer = 20 * 64 + 2 * 4 * (64 + 32) + 4 * 2 * 256
    assert working(role, training=True)["activations"] == 100 * 4 * layer
    checkpointed = working(replace(role, checkpointing=True), training=True)
    assert checkpointed["activations"] == 100 * (4 * 2 * 64 + layer)


def test_logits_that_are_scaled_or_capped_are_counted_whole() -> None:
    blocks = RoleSize(
        "actor", SMALL, ranks=1, number_bytes=2, stage=3, trained=True, tokens=100_000, scored_share=0.5, device="cpu"
    )
    whole = replace(blocks, model=replace(SMALL, whole_logits=True))
    assert working(whole, training=False)["block of logits"] == 50_000 * 500 * 2 * 2
    item = "head and a block of logits"
    more = working(whole, training=True)[item] - working(blocks, training=True)[item]
    assert more == 50_000 * (500 * 2 * 4 - LOGITS_BLOCK["cpu"] / 50_000 * 10)


def test_logits_are_counted_by_the_block() -> None:
    assert LOGITS_BLOCK == {"cpu": head.BLOCK, "cuda": head.CARD_BLOCK} and head.NARROWEST == LOGITS_NARROWEST
    few = RoleSize("actor", SMALL, ranks=1, number_bytes=2, stage=3, trained=True, tokens=100, scored_share=0.5)
    assert working(few, training=False)["block of logits"] == 50 * 500 * (2 + 8), "fewer than a block"
    assert working(few, training=True)["head and a block of logits"] == 50 * 500 * 10 + 50 * 64 * 8 + 2 * 50_000
    large = replace(few, model=replace(SMALL, vocabulary=131_072), tokens=16_384)
    for device, block in LOGITS_BLOCK.items():
        assert working(replace(large, device=device), training=False)["block of logits"] == block * 10
    assert working(replace(large, tokens=1 << 21), training=False)["block of logits"] == (1 << 20) * 64 * 10
    critic = working(replace(few, model=replace(SMALL, vocabulary=0)), training=True)
    assert not [item for item in critic if "logits" in item]


def test_only_a_sharded_group_gathers_but_a_single_rank_holds_a_bucket_too() -> None:
    role = RoleSize("actor", SMALL, ranks=1, number_bytes=2, stage=3, trained=True)
    assert REDUCE_BUCKET == CARD_BUCKET
    assert "gathered layers" not in working(role, training=True)
    assert states(role)["reduction bucket"] == states(replace(role, ranks=2))["reduction bucket"] == 2 * REDUCE_BUCKET
    assert working(replace(role, ranks=2), training=True)["gathered layers"] == 2 * (2 * 100_000 + 50_000)
    assert working(replace(role, stage=2), training=True)["reduction buckets"] == 4 * REDUCE_BUCKET
    on_cpu = replace(role, device="cpu", stage=2)
    assert not [item for item in {**working(on_cpu, training=True), **states(on_cpu)} if "bucket" in item]


def test_a_push_stages_a_gibibyte_or_the_largest_weight_or_all_there_is() -> None:
    assert staging(SMALL, 2) == 2 * SMALL.parameters
    assert staging(replace(SMALL, parameters=10**10), 2) == GIB
    assert staging(SEVENTY_B, 2) == 2 * SEVENTY_B.embedding > GIB


def test_an_engine_takes_its_share_and_gives_it_back_asleep() -> None:
    awake = EngineSize(SEVENTY_B, 2, parallel=4, utilization=0.9, sleep=0, longest=2048)
    assert sum(engine(awake, 80 * GIB, "train actor").values()) == pytest.approx(72 * GIB)
    asleep = replace(awake, sleep=1)
    assert sum(engine(asleep, 80 * GIB, "train actor").values()) < 2 * GIB
    assert engine(asleep, 80 * GIB, "push")["engine's weights"] == awake.weights == SEVENTY_B.parameters * 2 / 4
    assert engine_host(asleep) == {"sleeping weights": awake.weights}
    assert engine_host(replace(awake, sleep=2)) == engine_host(awake) == {}
    assert awake.kv_of_a_sample == 2 * 80 * 2 * 128 * 2 * 2048
    latent = replace(awake, model=replace(SEVENTY_B, latent=576))
    assert latent.kv_of_a_sample == 80 * 576 * 2 * 2048  # whole on each of the engine's GPUs


def test_a_mean_of_the_weights_is_kept_in_full_precision_also_while_the_rest_sleeps() -> None:
    role = RoleSize("actor", SMALL, ranks=2, number_bytes=2, stage=3, trained=True, averaged=True, sleep=True)
    item = "mean of the weights (float32)"
    assert states(role, training=False)[item] == states(role)[item] == 4 * SMALL.parameters / 2
    assert states(replace(role, stage=2, sleep=False))[item] == 4 * SMALL.parameters
    away = replace(role, offload_parameters=True, sleep=False)
    assert item not in states(away) and host_states(away)[item] == 4 * SMALL.parameters / 2
