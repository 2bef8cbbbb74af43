"""GPU memory by phase and the share of a card's arithmetic, from ranks' reports that are written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cluster.estimate.memory import GIB, RoleSize
from cluster.estimate.model_size import ModelSize
from cluster.ranks.card_use import CardSample, CardUse
from cluster.ranks.usage import CallOrigin, RankCall, RankUsage
from orchestrator.metrics import METRICS
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.card_metrics import SampleWork, StepWork, card_metrics

MODEL = ModelSize(
    parameters=10**9, layer=10**8, embedding=10**7, layers=9, hidden=1000, intermediate=4000, heads=10, kv_heads=10,
    head_width=100, vocabulary=1000,
)  # fmt: skip
H100 = "NVIDIA H100 80GB HBM3"


def size(role: str, **changes: Any) -> RoleSize:
    return RoleSize(role=role, model=MODEL, ranks=1, number_bytes=2, stage=3, trained=True, **changes)


def usage(busy: list[tuple[float, float, str]], cards: CardUse | None) -> RankUsage:
    return RankUsage(pid=1, busy=[RankCall(*call, CallOrigin(call[0], "")) for call in busy], series={}, cards=cards)


def step() -> Clock:
    clock = Clock(lambda phase: None)
    clock.began = 0.0
    clock.spans += [
        ("generate", (0.0, 10.0)),
        ("score", (10.0, 12.0)),
        ("update", (12.0, 20.0)),
        ("push", (20.0, 21.0)),
    ]
    return clock


def samples(*pairs: tuple[float, float]) -> list[CardSample]:
    return [CardSample(at, int(gib * GIB), busy=0.5) for at, gib in pairs]


def test_memory_is_that_of_the_fullest_card_in_each_phase() -> None:
    one = CardUse(
        H100, samples((1, 30), (11, 50), (13, 70), (25, 79)), allocated_bytes=20 * GIB, reserved_bytes=40 * GIB
    )
    two = CardUse(H100, samples((2, 60), (14, 10), (20.5, 33)), allocated_bytes=10 * GIB, reserved_bytes=45 * GIB)
    metrics = card_metrics([("actor", usage([], one)), ("rollout", usage([], two))], step(), None)
    assert metrics == {
        "memory/gpu_generate_gib": 60,
        "memory/gpu_score_gib": 50,
        "memory/gpu_update_gib": 70,  # what came after the step does not count
        "memory/gpu_push_gib": 33,
        "memory/gpu_rank_allocated_gib": 20,
        "memory/gpu_rank_reserved_gib": 40,
        "memory/gpu_engine_allocated_gib": 10,
        "memory/gpu_engine_reserved_gib": 45,
        "gpu/utilization": 0.5,
    }
    assert set(metrics) <= set(METRICS)
    idle = CardUse(H100, [CardSample(-5.0, GIB, busy=0.0)], 0, 0)  # of an evaluation before the step
    assert (
        card_metrics([("actor", usage([], one)), ("critic", usage([], idle))], step(), None)["gpu/utilization"] == 0.5
    )


def test_the_share_of_the_arithmetic_is_six_operations_a_parameter_and_token() -> None:
    """Of a model that is almost only matrices: 2 operations forward, 4 backward; adapters need half of the latter."""
    use = CardUse(H100, [], 0, 0)
    sizes, batch = {"actor": size("actor"), "critic": size("critic", adapters=0)}, SampleWork(100, 50, 0)
    work = StepWork(sizes, batch, batch, epochs=2)
    once = 2 * 9e8 * 5000 + 100 * 2 * 50 * 50 * 1000 * 9
    ranks = [
        ("actor", usage([(0, 1, "logprobs"), (12, 14, "update"), (20, 21, "push")], use)),
        ("actor", usage([(0, 1, "logprobs"), (12, 14, "update")], use)),
        ("critic", usage([(12, 16, "update")], use)),
    ]
    metrics = card_metrics(ranks, step(), work)
    evaluated = ("actor", usage([(-40, -10, "logprobs"), (-10, -5, "update")], use))  # told of with this step
    assert card_metrics([*ranks, evaluated], step(), work) == metrics
    assert metrics["mfu/actor_score"] == pytest.approx(once / (2 * 989e12))
    assert metrics["mfu/actor_update"] == pytest.approx(2 * 3 * once / (4 * 989e12))
    assert metrics["mfu/critic_update"] == pytest.approx(2 * 2 * once / (4 * 989e12))
    wide = replace(work, sizes={"actor": replace(size("actor"), number_bytes=4)})
    assert card_metrics(ranks, step(), wide)["mfu/actor_score"] == pytest.approx(once / (2 * 67e12)), "float32's peak"
    assert "mfu/critic_score" not in metrics and set(metrics) <= set(METRICS)


def test_scoring_is_that_of_all_samples_also_of_those_that_are_not_trained_on() -> None:
    scoring, batch = SampleWork(300, 50, 0), SampleWork(100, 50, 0)
    work, plain = (StepWork({"actor": size("actor")}, scored, batch, epochs=1) for scored in (scoring, batch))
    assert work.operations("actor", "logprobs") == 3 * plain.operations("actor", "logprobs")
    assert work.operations("actor", "update") == plain.operations("actor", "update")


def test_the_rows_of_the_pre_training_loss_count_once_in_the_actors_update() -> None:
    batch, sizes = SampleWork(100, 50, 0), {role: size(role) for role in ("actor", "critic")}
    plain, work = (StepWork(sizes, batch, batch, epochs=2, pretraining=texts) for texts in (None, batch))
    assert work.operations("actor", "update") == pytest.approx(1.5 * plain.operations("actor", "update"))
    assert work.operations("critic", "update") == plain.operations("critic", "update")
    assert work.operations("actor", "logprobs") == plain.operations("actor", "logprobs")


def test_without_a_gpu_there_is_nothing_to_tell() -> None:
    assert card_metrics([("actor", usage([(0, 1, "update")], None))], step(), None) == {}
