"""Rules between the device and where the memory of the models is kept."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.role_table import ACTOR, ENGINES
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from roles.config.models import TrainedRole


def memory_rules(config: EvaluationRun) -> Iterator[str]:
    """What is impossible without GPUs, and what DeepSpeed cannot do with the given ZeRO stage."""
    roles = [role for role in config.model_roles if role != ENGINES]
    if not isinstance(config, RunConfig):
        roles = [role for role in roles if role != ACTOR]  # the reference may live on its ranks, with its own section
    for role in roles:
        section, key = config.section(role), f"{section_key(role)}.zero"
        zero = section.zero
        for name in ("offload_optimizer", "offload_parameters", "sleep"):
            if getattr(zero, name) and config.device == "cpu":
                yield f"{key}.{name}=true has nothing to offload from with device=cpu; set it to false"
        if zero.offload_parameters and zero.stage != 3:
            yield f"{key}.offload_parameters=true needs {key}.stage=3, not {zero.stage}; set one of the two"
        if zero.sleep and not isinstance(section, TrainedRole):
            yield f"{key}.sleep=true, but the {role} has no optimizer; set it to false"
        elif zero.sleep and (zero.stage != 3 or zero.offload_optimizer or zero.offload_parameters):
            yield (
                f"{key}.sleep=true needs {key}.stage=3 without offload_optimizer and offload_parameters (what is in "
                "host memory already need not move there); set one of them"
            )
        if zero.offload_optimizer and zero.stage == 0:
            yield f"{key}.offload_optimizer=true needs {key}.stage 1, 2 or 3, not 0; set one of the two"
