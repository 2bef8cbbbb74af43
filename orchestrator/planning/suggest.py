"""`tetrarch plan --suggest`: the fastest layouts of a run on the GPUs that it already has.

A RunConfig flows in, the best few of all layouts that fit flow out.

The search covers every way to put the roles into groups and to divide the GPUs among these (whole nodes, in lots if
there are many, or a half, a quarter … of one node), with every tensor-parallel size, micro-batches of half to four
times the file's, optimizers on the card, asleep or offloaded, sleeping engines and shares of memory for vLLM. A
structure is first timed with its fastest settings, whether or not they fit: if even these are slower than the best
layouts so far, it is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from typing import Any

from cluster.config import Efficiency, EnginesConfig, GroupsPlacement, LocalPlacement, PlacedGroup, PoolConfig
from cluster.errors import PlacementError
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan
from cluster.role_table import ENGINES, base_role, trained_roles
from orchestrator.config.rules.rule_table import broken_rules
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.errors import ConfigError
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.planned_layout import PlannedLayout

COUNT = 5
FACTORS = (1, 0.5, 2, 4)
"""Factors for every role's `micro_batch_tokens`."""
HOMES = ("card", "sleep", "host")
"""Where gradients and optimizer are kept: always on the card, on the card for updates (`zero.sleep`), or offloaded."""
UTILIZATIONS = (0.3, 0.45, 0.6, 0.75, 0.9)
MOST_LOTS = 8
"""Most lots into which the nodes of a pool are divided."""


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings that are searched in addition to the placement."""

    factor: float
    states: Mapping[str, str]
    """Trained role → the place of its gradients and optimizer, one of HOMES."""
    sleep: int
    utilization: float


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One layout that fits."""

    config: RunConfig
    layout: PlannedLayout

    def changes(self) -> dict[str, Any]:
        """The keys to write into the file, with their values."""
        config = self.config
        roles: dict[str, Any] = {
            role: {"micro_batch_tokens": getattr(config, role).micro_batch_tokens} for role in _sections(config)
        }
        for role in [role for role in trained_roles() if role in roles]:
            zero = getattr(config, role).zero
            roles[role]["zero"] = {"sleep": zero.sleep, "offload_optimizer": zero.offload_optimizer}
        engine = config.rollout.engine
        shares = {"gpu_memory_utilization": engine.gpu_memory_utilization, "sleep": engine.sleep}
        placement = config.placement.model_dump(mode="json", exclude_defaults=True)
        return {**roles, ENGINES: {"engine": shares}, "placement": placement}


def suggest(config: RunConfig, efficiency: Efficiency | None = None, count: int = COUNT) -> list[Suggestion]:
    """The `count` fastest structures that fit, each with its fastest settings; the fastest first."""
    if config.device != "cuda" or isinstance(config.placement, LocalPlacement):
        raise ConfigError("--suggest needs pools of GPUs: `device: cuda` and a placement of type groups or openrlhf")
    bounded: list[tuple[float, int, GroupsPlacement]] = []
    for placement in structures(as_groups(config.placement), _together(config)):
        # Sleeping costs moving the weights to the host and back, but lets the rows of all engines be scored together.
        awake = dict.fromkeys(trained_roles(), HOMES[0])
        fastest = (Setting(max(FACTORS), awake, sleep, max(UTILIZATIONS)) for sleep in _sleeps(placement))
        tried = [one for one in (apply(config, placement, setting) for setting in fastest) if not broken_rules(one)]
        with suppress(PlacementError):  # its CPUs are not enough for the reward functions
            made, times = None, []
            for one in tried:
                planned = layout(one, efficiency, made)
                made = planned.plan
                times.append(planned.step.total)
            if times:
                bounded.append((min(times), len(bounded), placement))
    found: list[Suggestion] = []
    for bound, _, placement in sorted(bounded):
        if len(found) == count and bound >= found[-1].layout.step.total:
            break
        best = _best(config, placement, efficiency)
        if best is not None:
            found = sorted([*found, best], key=lambda one: one.layout.step.total)[:count]
    return found


def _together(config: RunConfig) -> list[str]:
    """The roles that get GPUs; the members of an ensemble stay together."""
    return list(dict.fromkeys(base_role(role) for role in config.model_roles))


def _sections(config: RunConfig) -> list[str]:
    """The roles whose settings are tried; members of an ensemble and a judge keep theirs."""
    return [role for role in config.model_roles if role != ENGINES and role == section_key(role)]


def structures(placement: GroupsPlacement, roles: Sequence[str]) -> Iterator[GroupsPlacement]:
    """Every placement of `roles` into such shares that uses all GPUs of the pools."""
    cpus = max(group.cpus_per_rank for group in placement.groups.values())
    for groups in _partitions(list(roles)):
        for shares in _shared_out(len(groups), placement.pools):
            widths = next(per for own, (_, _, per) in zip(groups, shares, strict=True) if ENGINES in own)
            for width in (n for n in range(1, widths + 1) if widths % n == 0):
                placed = {
                    "-".join(own): PlacedGroup(
                        pool=pool,
                        nodes=nodes,
                        gpus_per_node=per,
                        roles=tuple(role for role in own if role != ENGINES),
                        engines=EnginesConfig(number=nodes * per // width, tensor_parallel_size=width)
                        if ENGINES in own
                        else None,
                        cpus_per_rank=cpus,
                    )
                    for own, (pool, nodes, per) in zip(groups, shares, strict=True)
                }
                yield placement.model_copy(update={"groups": placed})


def settings(placement: GroupsPlacement) -> Iterator[Setting]:
    """All settings that are tried with a placement; engines that share no GPUs never sleep."""
    placed = {role for group in placement.groups.values() for role in group.roles}
    trained = [role for role in trained_roles() if role in placed]
    choices = product(FACTORS, product(HOMES, repeat=len(trained)), _sleeps(placement), UTILIZATIONS)
    for factor, homes, sleep, utilization in choices:
        yield Setting(factor, dict(zip(trained, homes, strict=True)), sleep, utilization)


def _sleeps(placement: GroupsPlacement) -> tuple[int, ...]:
    shared = any(group.engines is not None and group.roles for group in placement.groups.values())
    return (0, 1) if shared else (0,)


def apply(config: RunConfig, placement: GroupsPlacement, setting: Setting) -> RunConfig:
    """The run with another placement and other settings."""
    changed: dict[str, Any] = {"placement": placement}
    for role in _sections(config):
        section = getattr(config, role)
        update: dict[str, Any] = {"micro_batch_tokens": max(int(section.micro_batch_tokens * setting.factor), 1)}
        if home := setting.states.get(role):
            flags = {"sleep": home == "sleep", "offload_optimizer": home == "host"}
            update["zero"] = section.zero.model_copy(update=flags)
        changed[role] = section.model_copy(update=update)
    shares = {"sleep": setting.sleep, "gpu_memory_utilization": setting.utilization}
    engine = config.rollout.engine.model_copy(update=shares)
    changed[ENGINES] = config.rollout.model_copy(update={"engine": engine})
    return config.model_copy(update=changed)


def _best(config: RunConfig, placement: GroupsPlacement, efficiency: Efficiency | None) -> Suggestion | None:
    """The fastest settings that fit; the first of equally fast ones. None if none fits."""
    best: Suggestion | None = None
    made: Plan | None = None
    for setting in settings(placement):
        tried = apply(config, placement, setting)
        planned = layout(tried, efficiency, made)
        made = planned.plan
        faster = best is None or planned.step.total < best.layout.step.total
        if faster and not planned.shortages and not broken_rules(tried):
            best = Suggestion(tried, planned)
    return best


def _partitions(roles: list[str]) -> Iterator[list[list[str]]]:
    """All ways to put roles into groups."""
    if not roles:
        yield []
        return
    first, *others = roles
    for groups in _partitions(others):
        yield [[first], *groups]
        for number, group in enumerate(groups):
            yield [*groups[:number], [first, *group], *groups[number + 1 :]]


Share = tuple[str, int, int]
"""(pool, nodes, GPUs per node)."""


def _shared_out(groups: int, pools: dict[str, PoolConfig]) -> Iterator[list[Share]]:
    """All ways to give each of `groups` groups a share, with no GPU left over."""
    left = {name: pool.nodes * pool.gpus_per_node for name, pool in pools.items() if pool.gpus_per_node}
    options = [(name, *share) for name in left for share in _shares(pools[name])]

    def fill(number: int, left: dict[str, int]) -> Iterator[list[Share]]:
        if number == 0:
            if not any(left.values()):
                yield []
            return
        for name, nodes, per in options:
            if nodes * per <= left[name]:
                for others in fill(number - 1, {**left, name: left[name] - nodes * per}):
                    yield [(name, nodes, per), *others]

    yield from fill(groups, left)


def _shares(pool: PoolConfig) -> list[tuple[int, int]]:
    """Shares of a pool as (nodes, GPUs per node): whole nodes, in lots if there are many; a half, a quarter … of a
    node."""
    lot = -(-pool.nodes // MOST_LOTS)
    # One group gets the nodes that the lots leave over.
    whole = sorted({*range(lot, pool.nodes + 1, lot), *range(pool.nodes, 0, -lot)})
    parts, part = [], pool.gpus_per_node
    while part % 2 == 0:
        part //= 2
        parts.append((1, part))
    return [*((nodes, pool.gpus_per_node) for nodes in whole), *parts]
