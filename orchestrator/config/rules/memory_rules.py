"""Rules between the device and where the memory of the models is kept."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.config.base import BaseConfig
from roles.config.models import TrainedRole


def memory_rules(config: BaseConfig) -> Iterator[str]:
    """What is impossible without GPUs, and what DeepSpeed cannot do with the given ZeRO stage."""
    for name, section in config.sharded.items():
        key, zero = f"{name}.zero", section.zero
        for part in ("offload_optimizer", "offload_parameters", "sleep"):
            if getattr(zero, part) and config.device == "cpu":
                yield f"{key}.{part}=true has nothing to offload from with device=cpu; set it to false"
        if zero.offload_parameters and zero.stage != 3:
            yield f"{key}.offload_parameters=true needs {key}.stage=3, not {zero.stage}; set one of the two"
        if zero.sleep and not isinstance(section, TrainedRole):
            yield f"{key}.sleep=true, but the {name} has no optimizer; set it to false"
        elif zero.sleep and (zero.stage != 3 or zero.offload_optimizer or zero.offload_parameters):
            yield (
                f"{key}.sleep=true needs {key}.stage=3 without offload_optimizer and offload_parameters (what is in "
                "host memory already need not move there); set one of them"
            )
        if zero.offload_optimizer and zero.stage == 0:
            yield f"{key}.offload_optimizer=true needs {key}.stage 1, 2 or 3, not 0; set one of the two"
