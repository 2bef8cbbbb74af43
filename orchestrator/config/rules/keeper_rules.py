"""Rules of processes that keep the rows of a step in place of the driver."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.placement.plan import ranks_of
from cluster.role_table import ENGINES
from orchestrator.config.run import RunConfig


def keeper_rules(config: RunConfig) -> Iterator[str]:
    """Nothing that needs a whole batch in the driver; rows of whole prompts for every keeper."""
    keepers, engines = config.row_keepers, ranks_of(config.placement, ENGINES)
    if not keepers:
        return
    said, without = f"row_keepers={keepers}", "or row_keepers: 0"
    if config.report.samples is not None:
        yield f"{said}: the driver writes report.samples, and has no samples; set report.samples: null, {without}"
    if config.ppo.dynamic_sampling is not None:
        yield f"{said}: ppo.dynamic_sampling chooses among samples of the driver; set it to null, {without}"
    if config.ppo.advantage.needs_greedy:
        kind = config.ppo.advantage.type
        yield f"{said}: ppo.advantage.type={kind} needs greedy responses, which no keeper has; use another, {without}"
    if keepers > engines:
        yield f"{said}: a keeper has the samples of one engine or more, and there are {engines}; use {engines} or fewer"
    elif config.rollout.prompts_per_step < engines:
        yield (
            f"{said}: every engine generates for whole prompts, but rollout.prompts_per_step="
            f"{config.rollout.prompts_per_step} is less than the {engines} engines; raise it, {without}"
        )
