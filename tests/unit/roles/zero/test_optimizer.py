"""AdamW's groups and the learning rate over a run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from roles.config.models import OptimizerConfig, ScheduleConfig
from roles.zero.optimizer import make_optimizer, make_scheduler, rate_factor, renew_rates, scale_rates


def factors(kind: Any, warmup: int, total: int) -> list[float]:
    schedule = ScheduleConfig(type=kind, warmup_steps=warmup)
    return [rate_factor(schedule, step, total) for step in range(total + 1)]


def test_linear_falls_to_zero_after_the_last_step() -> None:
    assert factors("linear", 0, 4) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_warmup_rises_and_wastes_no_step() -> None:
    assert factors("linear", 3, 7) == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0])
    assert factors("constant", 1, 3) == [0.5, 1.0, 1.0, 1.0]


def test_cosine() -> None:
    assert factors("cosine", 0, 4) == pytest.approx([0.5 * (1 + math.cos(math.pi * s / 4)) for s in range(5)])


def test_a_floor_is_what_the_rate_falls_to() -> None:
    for kind in ("linear", "cosine"):
        schedule = ScheduleConfig(type=kind, warmup_steps=1, floor=0.1)
        assert [rate_factor(schedule, step, 5) for step in (0, 1, 3, 5, 9)] == pytest.approx([0.5, 1, 0.55, 0.1, 0.1])


def test_past_the_end_the_rate_stays_zero() -> None:
    assert rate_factor(ScheduleConfig(type="linear"), 99, 4) == 0.0


def test_the_scheduler_moves_the_rate() -> None:
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.5), torch.nn.Linear(1, 1))
    scheduler = make_scheduler(ScheduleConfig(type="linear"), 4)(optimizer)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == [0.5, 0.375, 0.25, 0.125]


def test_a_falling_rate_needs_an_end() -> None:
    with pytest.raises(ValueError, match="optimizer_steps=0"):
        make_scheduler(ScheduleConfig(type="cosine"), 0)


def test_weight_decay_leaves_vectors_alone() -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(OptimizerConfig(weight_decay=0.1, epsilon=1e-7), module)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(module.weight): 0.1, id(module.bias): 0.0}
    assert all(group["eps"] == 1e-7 and group["betas"] == (0.9, 0.95) for group in optimizer.param_groups)


def test_a_checkpoint_is_gone_on_from_with_the_configured_rate() -> None:
    """What has been multiplied since stays; an unchanged rate changes no bit."""

    def make(rate: float) -> tuple[torch.optim.Optimizer, Any]:
        weight = nn.Parameter(torch.zeros(2, 2))
        optimizer = torch.optim.AdamW([{"params": [weight]}, {"params": [nn.Parameter(torch.zeros(2))]}], lr=rate)
        return optimizer, make_scheduler(ScheduleConfig(type="linear"), 10)(optimizer)

    written, schedule = make(0.3)
    for _ in range(3):
        written.step()
        schedule.step()
    scale_rates(schedule, 0.1)
    for rate in (0.3, 0.7):
        optimizer, renewed = make(rate)
        optimizer.load_state_dict(written.state_dict())
        renewed.load_state_dict(schedule.state_dict())
        renew_rates(renewed, rate)
        expected = written.param_groups[0]["lr"] if rate == 0.3 else pytest.approx(0.7 * 0.1 * 0.7)
        assert [group["lr"] for group in optimizer.param_groups] == [expected] * 2
        optimizer.step()
        renewed.step()
        assert optimizer.param_groups[1]["lr"] == pytest.approx(rate * 0.1 * 0.6)
