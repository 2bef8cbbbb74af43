"""AdamW, and the learning rate over the optimizer steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from roles.config.models import OptimizerConfig, ScheduleConfig, ZeroConfig
from roles.zero.dead_builds import without_dead_builds


def make_optimizer(config: OptimizerConfig, module: nn.Module, zero: ZeroConfig | None = None) -> Any:
    """AdamW over `module`'s parameters (sharded by ZeRO-3 or not); weight decay on matrices only.

    If `zero` offloads the optimizer or lets it sleep, it is DeepSpeed's own, which is compiled at its first use.
    """
    matrices: list[Any] = []
    vectors: list[Any] = []
    for parameter in filter(lambda parameter: parameter.requires_grad, module.parameters()):
        shape = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
        (matrices if len(shape) > 1 else vectors).append(parameter)
    groups: list[dict[str, Any]] = [{"params": [*matrices, *vectors]}]  # one group: ZeRO-3 steps each group by itself
    if config.weight_decay and vectors:
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "eps": config.epsilon,
        "weight_decay": config.weight_decay,
    }
    if zero and zero.offload_optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        with without_dead_builds():
            return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    if zero and zero.sleep:
        from deepspeed.ops.adam import FusedAdam  # the only optimizer whose state DeepSpeed moves

        with without_dead_builds():
            return FusedAdam(groups, adam_w_mode=True, **options)
    return torch.optim.AdamW(groups, fused=True, **options)


def make_scheduler(schedule: ScheduleConfig, total: int) -> Callable[[Any], LambdaLR]:
    """A function from an optimizer to its scheduler, for `total` optimizer steps."""
    if schedule.type != "constant" and total < 1:
        raise ValueError(f"optimizer_steps={total}: a {schedule.type} schedule needs an end")
    return lambda optimizer: LambdaLR(optimizer, partial(rate_factor, schedule, total=total))


def scale_rates(scheduler: Any, factor: float) -> None:
    """Multiply the learning rate of every group, now and for the rest of the schedule."""
    scheduler.base_lrs = [rate * factor for rate in scheduler.base_lrs]
    _show(scheduler)


def _show(scheduler: Any) -> None:
    """Set the optimizer's learning rates to the schedule's for its next step."""
    groups = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
    for group, rate, factor in groups:
        group["lr"] = rate * factor(scheduler.last_epoch)


def renew_rates(scheduler: Any, rate: float) -> None:
    """After loading a checkpoint, replace the learning rate that it was written with by the configured `rate`, times
    all factors that `scale_rates` has applied so far."""
    written = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    scheduler.base_lrs = [base * (rate / old) for base, old in zip(scheduler.base_lrs, written, strict=True)]
    for group in scheduler.optimizer.param_groups:
        group["initial_lr"] = rate
    _show(scheduler)


def rate_factor(schedule: ScheduleConfig, step: int, total: int) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`, as a share of the configured one.

    Linear as in the N+ authors' code: 1 at the first step, 1/total at the last, 0 after it (`floor` stretches 0 … 1 to
    floor … 1). Warm-up comes before.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / (schedule.warmup_steps + 1)
    if schedule.type == "constant":
        return 1.0
    done = min(1.0, (step - schedule.warmup_steps) / max(1, total - schedule.warmup_steps))
    left = 1.0 - done if schedule.type == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return schedule.floor + (1.0 - schedule.floor) * left
