"""`tetrarch plan --suggest`: the fastest layouts of a run on the GPUs that it already has, the simpler of equal ones.

A RunConfig flows in, the best few of all layouts that fit flow out.

The search covers every way to put the roles into groups and to divide the GPUs among these (whole nodes, in lots if
there are many, or a half, a quarter … of one node), with every tensor-parallel size, micro-batches of half to four
times the file's, optimizers on the card, asleep or offloaded, sleeping engines and shares of memory for vLLM, the
file's among them. A structure is first timed with its fastest settings, whether or not they fit: if even these are
slower than the best layouts so far, it is skipped.

Layouts whose seconds differ by less than the prediction's own error share a rank. Within a rank the simplest comes
first, and of a layout's settings the simplest that keep it in its rank are taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby, product
from operator import attrgetter, itemgetter
from typing import Any

from cluster.config import Efficiency, GroupsPlacement, LocalPlacement
from cluster.errors import PlacementError
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan, plan
from cluster.role_table import ENGINES, base_role, trained_roles
from orchestrator.config.role_needs import ppo_roles, role_needs
from orchestrator.config.rules.rule_table import broken_rules
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.errors import ConfigError
from orchestrator.planning.gpu_shares import structures, with_cpus
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.planned_layout import PlannedLayout

COUNT = 5
TIE = 0.11
"""Share by which the seconds of two layouts must differ for an order: the median error of predicted steps
(`tests/reference/published_steps.yaml`)."""
FACTORS = (1, 0.5, 2, 4)
"""Factors for every role's `micro_batch_tokens`."""
HOMES = ("card", "sleep", "host")
"""Where gradients and optimizer are kept: always on the card, on the card for updates (`zero.sleep`), or offloaded."""
UTILIZATIONS = (0.3, 0.45, 0.6, 0.75, 0.9)


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
    rank: int
    """1: among the fastest; layouts of one rank are equally fast as far as the prediction can tell."""
    within: float
    """Most seconds a step of its rank."""

    def ties(self, other: PlannedLayout) -> bool:
        """Whether another layout fits and is as fast as this rank, or faster."""
        return not other.shortages and other.step.total <= self.within

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


class Structure:
    """One way to share out the GPUs, and the seconds of a step with each of its settings."""

    def __init__(
        self, config: RunConfig, placement: GroupsPlacement, made: Plan, efficiency: Efficiency | None
    ) -> None:
        """`made`: the plan of the placement, which no setting changes."""
        self._config, self._placement, self._made, self._efficiency = config, placement, made, efficiency
        self._known: dict[int, float] = {}
        groups = placement.groups.values()
        self._width = max(group.engines.tensor_parallel_size for group in groups if group.engines)
        # Sleeping costs moving the weights, but lets the rows of all engines be scored together.
        awake = dict.fromkeys(trained_roles(), HOMES[0])
        most = max(*UTILIZATIONS, config.rollout.engine.gpu_memory_utilization)
        quick = [Setting(max(FACTORS), awake, sleep, most) for sleep in _sleeps(placement)]
        times = [self.planned(one).step.total for one in quick if not broken_rules(self.applied(one))]
        self.bound = min(times, default=math.inf)
        """No setting that fits is faster."""
        self.plainest = (len(placement.groups), 0, self._width, 0.0)
        """No setting is simpler: see `simplicity`."""

    def fastest(self) -> float:
        """Seconds of a step with the fastest settings that fit; infinite if none fits."""
        return min(self._seconds(n, one) for n, one in enumerate(settings(self._config, self._placement)))

    def simplest(self, within: float) -> tuple[tuple[float, ...], Setting] | None:
        """The simplest of the settings that fit and take at most `within` seconds, and how simple it is; or None."""
        every = sorted((self.simplicity(one), n, one) for n, one in enumerate(settings(self._config, self._placement)))
        for plain, equal in groupby(every, key=itemgetter(0)):
            number, quickest = min(((n, one) for _, n, one in equal), key=lambda tried: self._seconds(*tried))
            if (seconds := self._seconds(number, quickest)) <= within:
                return (*plain, seconds), quickest
        return None

    def simplicity(self, setting: Setting) -> tuple[float, ...]:
        """Smaller is simpler: groups and models that move, then settings not as in the file, then engines' width."""
        moves = sum(home != HOMES[0] for home in setting.states.values()) + bool(setting.sleep)
        changed = (setting.factor != 1) + (setting.utilization != self._config.rollout.engine.gpu_memory_utilization)
        return len(self._placement.groups) + moves, changed, self._width

    def _seconds(self, number: int, setting: Setting) -> float:
        """Seconds of a step with the setting of that number; infinite if it does not fit."""
        if number not in self._known:
            planned = self.planned(setting)
            fits = not planned.shortages and not broken_rules(self.applied(setting))
            self._known[number] = planned.step.total if fits else math.inf
        return self._known[number]

    def planned(self, setting: Setting) -> PlannedLayout:
        """The plan with a setting."""
        return layout(self.applied(setting), self._efficiency, self._made)

    def applied(self, setting: Setting) -> RunConfig:
        """The run with a setting."""
        return apply(self._config, self._placement, setting)


def suggest(config: RunConfig, efficiency: Efficiency | None = None, count: int = COUNT) -> list[Suggestion]:
    """`count` structures that fit: rank by rank from the fastest on, the simplest of a rank first."""
    if config.device != "cuda" or isinstance(config.placement, LocalPlacement):
        raise ConfigError("--suggest needs pools of GPUs: `device: cuda` and a placement of type groups or openrlhf")
    groups = as_groups(config.placement)
    cpus = sorted({group.cpus_per_rank for group in groups.groups.values()}, reverse=True)
    needs = role_needs(config, ppo_roles(config))
    left: list[Structure] = []
    for placement in structures(groups, _together(config)):
        for each in dict.fromkeys((cpus[0], cpus[-1])):  # the fewest, where a node has too few for the most
            sized = with_cpus(placement, each)
            with suppress(PlacementError):
                left.append(Structure(config, sized, plan(sized, needs), efficiency))
                break
    left.sort(key=attrgetter("bound"))
    found: list[Suggestion] = []
    while len(found) < count and (fastest := _fastest(left)) < math.inf:
        rank, within = (found[-1].rank + 1 if found else 1), fastest * (1 + TIE)
        taken, left = _simplest(left, within, count - len(found))
        found += [Suggestion(one.applied(setting), one.planned(setting), rank, within) for one, setting in taken]
    return found


def _fastest(ordered: Sequence[Structure]) -> float:
    """Seconds of a step of the fastest structure, of those in the order of their bounds; infinite if none fits."""
    best = math.inf
    for structure in ordered:
        if structure.bound >= best:
            break
        best = min(best, structure.fastest())
    return best


def _simplest(
    ordered: Sequence[Structure], within: float, count: int
) -> tuple[list[tuple[Structure, Setting]], list[Structure]]:
    """The `count` simplest structures of those that take at most `within` seconds, each with its simplest setting; and
    all others, in the order that they had."""
    rated: list[tuple[tuple[float, ...], int, Structure, Setting]] = []
    quick = [one for one in ordered if one.bound <= within]
    for place, structure in sorted(enumerate(quick), key=lambda one: one[1].plainest):
        if len(rated) == count and structure.plainest > rated[-1][0]:
            break
        if (simple := structure.simplest(within)) is not None:
            rated = sorted([*rated, (simple[0], place, structure, simple[1])], key=lambda one: one[:2])[:count]
    taken = [structure for *_, structure, _ in rated]
    return [(one, setting) for *_, one, setting in rated], [one for one in ordered if one not in taken]


def _together(config: RunConfig) -> list[str]:
    """The roles that get GPUs; the members of an ensemble stay together."""
    return list(dict.fromkeys(base_role(role) for role in config.model_roles))


def _sections(config: RunConfig) -> list[str]:
    """The roles whose settings are tried; members of an ensemble and a judge keep theirs."""
    return [role for role in config.model_roles if role != ENGINES and role == section_key(role)]


def settings(config: RunConfig, placement: GroupsPlacement) -> Iterator[Setting]:
    """All settings that are tried with a placement; engines that share no GPUs never sleep."""
    placed = {role for group in placement.groups.values() for role in group.roles}
    trained = [role for role in trained_roles() if role in placed]
    shares = sorted({*UTILIZATIONS, config.rollout.engine.gpu_memory_utilization})
    choices = product(FACTORS, product(HOMES, repeat=len(trained)), _sleeps(placement), shares)
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
