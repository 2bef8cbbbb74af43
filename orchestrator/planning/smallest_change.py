"""The fewest settings to change so that a layout fits. A RunConfig flows in, overrides of it flow out."""

from __future__ import annotations

from copy import deepcopy
from itertools import combinations

from cluster.role_table import trained_roles
from orchestrator.config.loading import apply_override, validate
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.layout_planner import layout

MOST_CHANGES = 3
"""Most overrides that are combined."""


def smallest_change(config: RunConfig) -> list[str] | None:
    """The fewest overrides (of settings, not of the placement) with which the layout fits; None if no combination fits.

    Among combinations of the same size, those early in the list are preferred.
    """
    plain = config.model_dump(by_alias=True)
    few = max(min(config.section(role).micro_batch_tokens for role in trained_roles()) // 4, 1)
    settings = (
        "gradient_checkpointing=true",
        f"micro_batch_tokens={few}",
        "zero.sleep=true",
        "zero.offload_optimizer=true",
    )
    changes = [
        "rollout.engine.sleep=1",
        *(f"{role}.{setting}" for setting in settings for role in trained_roles() if role in config.model_roles),
        *(f"rollout.engine.gpu_memory_utilization={share}" for share in (0.4, 0.5, 0.6, 0.8)),
    ]
    for count in range(1, MOST_CHANGES + 1):
        for chosen in combinations(changes, count):
            data = deepcopy(plain)
            for change in chosen:
                apply_override(data, change)
            try:
                fits = not layout(validate(data)).shortages
            except ConfigError:
                continue
            if fits:
                return list(chosen)
    return None
