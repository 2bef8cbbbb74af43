"""The fewest settings to change so that a plan fits. A configuration flows in, overrides of it flow out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import combinations
from typing import TypeVar

from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import apply_override, validate_root
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.planning.planned_layout import PlannedLayout

C = TypeVar("C", bound=BaseConfig)

MOST_CHANGES = 3
"""Most overrides that are combined."""


def smallest_change(config: C, layouts: Callable[[C], Sequence[PlannedLayout]]) -> list[str] | None:
    """The fewest overrides (of settings, not of the placement) with which all layouts of a training fit; None if no
    combination fits.

    Among combinations of the same size, those early in the list are preferred.
    """
    plain = config.model_dump(by_alias=True)
    for count in range(1, MOST_CHANGES + 1):
        for chosen in combinations(_changes(config), count):
            data = deepcopy(plain)
            for change in chosen:
                apply_override(data, change)
            try:
                fits = not any(one.shortages for one in layouts(validate_root(type(config), data)))
            except ConfigError:  # also where the section has no such key
                continue
            if fits:
                return list(chosen)
    return None


def _changes(config: BaseConfig) -> list[str]:
    """What is tried, in the order in which it is preferred."""
    engines, shares = list[str](), list[str]()
    if isinstance(config, RunConfig):
        engines = [f"rollout.engine.sleep={level}" for level in (1, 2) if level > config.rollout.engine.sleep]
        shares = [f"rollout.engine.gpu_memory_utilization={share}" for share in (0.4, 0.5, 0.6, 0.8)]
    few = [f"{key}.micro_batch_tokens={max(of.micro_batch_tokens // 4, 1)}" for key, of in config.trained.items()]
    settings = ("zero.sleep=true", "zero.offload_optimizer=true")
    return [
        *engines,
        *(f"{key}.gradient_checkpointing=true" for key in config.trained),
        *few,
        *(f"{key}.{setting}" for setting in settings for key in config.trained),
        *shares,
    ]
