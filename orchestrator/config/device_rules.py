"""Rules between the device and where memory is kept. Pure; called by `orchestrator.config.rules`.

A RunConfig flows in, one line for each broken rule flows out.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.role_table import ENGINES
from orchestrator.config.run import RunConfig
from roles.config.models import TrainedRole


def device_rules(config: RunConfig) -> Iterator[str]:
    """What a machine without GPUs cannot do, and what DeepSpeed and vLLM cannot do together."""
    engine = config.rollout.engine
    if config.device == "cpu" and engine.block_size is not None and engine.block_size % 32:
        near = max(32, round(engine.block_size / 32) * 32)
        yield (
            f"rollout.engine.block_size={engine.block_size} is not a multiple of 32, which vLLM's CPU build needs; "
            f"use {near}, or null"
        )
    if engine.sleep and config.device == "cpu":
        yield f"rollout.engine.sleep={engine.sleep} has no GPU to give away with device=cpu; set it to 0"
    if engine.sleep == 2 and config.critic.warmup.max_steps:
        yield (
            f"rollout.engine.sleep=2 drops weights that no push renews while critic.warmup.max_steps="
            f"{config.critic.warmup.max_steps}; use sleep: 1"
        )
    for role in (role for role in config.model_roles if role != ENGINES):
        section = config.section(role)
        zero = section.zero
        for name in ("offload_optimizer", "offload_parameters", "sleep"):
            if getattr(zero, name) and config.device == "cpu":
                yield f"{role}.zero.{name}=true has nothing to offload from with device=cpu; set it to false"
        if zero.offload_parameters and zero.stage != 3:
            yield f"{role}.zero.offload_parameters=true needs {role}.zero.stage=3, not {zero.stage}; set one of the two"
        if zero.sleep and not isinstance(section, TrainedRole):
            yield f"{role}.zero.sleep=true, but the {role} has no optimizer; set it to false"
        elif zero.sleep and (zero.stage != 3 or zero.offload_optimizer or zero.offload_parameters):
            yield (
                f"{role}.zero.sleep=true needs {role}.zero.stage=3 without offload_optimizer and offload_parameters "
                "(what is on the host already need not go there); set one of them"
            )
        if zero.offload_optimizer and zero.stage == 0:
            yield f"{role}.zero.offload_optimizer=true needs {role}.zero.stage 1, 2 or 3, not 0; set one of the two"
