"""What GPUs and hosts of a plan hold, and what of it is too much. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.estimate.memory import GIB, MEMORY_PHASES, EngineSize
from cluster.estimate.model_size import ModelSize
from cluster.placement.plan import Plan, Slot
from cluster.role_table import ENGINES, trained_roles
from orchestrator.planning.predicted_step import StepTime

USABLE = 0.95
"""Of a card: the rest is lost between blocks. An assumption."""

TIGHT = 0.85
"""Share of a card from which its memory is worth a warning."""
IDLE = 0.5
"""Share of a step that cards may wait before it is worth a warning."""

Held = dict[tuple[str, str], float]
"""(role, item) → bytes."""
Shortage = tuple[float, str]
"""(how bad it is, what is told)."""


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """One GPU of the plan."""

    node: int
    gpu: int
    capacity: float
    """Bytes."""
    slots: tuple[Slot, ...]
    """Who lives there."""
    phases: dict[str, Held]
    """What it holds in each phase."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Of those who live there, each once."""
        return tuple(dict.fromkeys(slot.role for slot in self.slots))

    @property
    def peak_phase(self) -> str:
        """Where it holds most."""
        return max(MEMORY_PHASES, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> float:
        """Bytes."""
        return sum(self.phases[self.peak_phase].values())

    @property
    def fits(self) -> bool:
        """Whether the peak leaves the allocator some room."""
        return self.peak <= USABLE * self.capacity


@dataclass(frozen=True, slots=True)
class HostLoad:
    """One node of the plan."""

    node: int
    capacity: float
    """Bytes."""
    held: Held


@dataclass(frozen=True, slots=True)
class PlannedLayout:
    """A plan with its bytes."""

    plan: Plan
    gpus: tuple[GpuLoad, ...]
    hosts: tuple[HostLoad, ...]
    sizes: dict[str, ModelSize]
    """Role → its model."""
    engines: EngineSize
    notes: tuple[str, ...]
    """What had to be assumed."""
    step: StepTime
    """Of one PPO step, in seconds."""
    steps: int
    """Of the run."""
    price_per_hour: float | None
    """Of all its nodes; None where a pool has no price."""

    @property
    def phases(self) -> tuple[str, ...]:
        """Of its memory: without a critic, nobody trains one."""
        idle = {f"train {role}" for role in trained_roles() if role not in self.plan.roles}
        return tuple(phase for phase in MEMORY_PHASES if phase not in idle)

    @property
    def price_per_step(self) -> float | None:
        """In the pools' currency."""
        return None if self.price_per_hour is None else self.price_per_hour * self.step.total / 3600

    @property
    def shortages(self) -> list[str]:
        """One line for each kind of GPU or host that is too small, worst first; empty if everything fits."""
        found = [*self._full_cards(), *self._engines_without_room(), *self._full_hosts()]
        return [line for _, line in sorted(found, reverse=True)]

    def _full_cards(self) -> Iterator[Shortage]:
        """The fullest card of each kind."""
        kinds: dict[tuple[str, ...], GpuLoad] = {}
        for load in self.gpus:
            if not load.fits and (load.roles not in kinds or load.peak > kinds[load.roles].peak):
                kinds[load.roles] = load
        for load in kinds.values():
            yield (
                load.peak / load.capacity,
                f"GPUs of {' and '.join(load.roles)}: {_gib(load.peak)} in `{load.peak_phase}`, but "
                f"a card has {_gib(load.capacity)} ({USABLE:.0%} of it usable); most of it: "
                + _largest(load.phases[load.peak_phase]),
            )

    def _engines_without_room(self) -> Iterator[Shortage]:
        """Heads that do not spread over an engine's GPUs, and a share of a card that is too small for one sample."""
        parallel, model = self.engines.parallel, self.engines.model
        if not model.splits(parallel):
            fitting = ", ".join(str(n) for n in range(1, model.heads + 1) if model.splits(n))
            yield (
                math.inf,
                f"the engines: {model.heads} attention heads ({model.kv_heads} of keys and values) do not spread "
                f"over a tensor-parallel size of {parallel}; use one of {fitting}",
            )
        card = min((load.capacity for load in self.gpus if ENGINES in load.roles), default=math.inf)
        weights, sample = self.engines.weights, self.engines.kv_of_a_sample
        if weights + sample > self.engines.utilization * card:
            enough = (weights + sample) / card + 0.05
            fix = f"use {enough:.2f} or more" if enough <= 1 else "use a larger tensor-parallel size"
            yield (
                math.inf,
                f"the engines: rollout.engine.gpu_memory_utilization={self.engines.utilization:g} has no room for "
                f"one sample beside the weights ({_gib(weights)} and {_gib(sample)} on each card); {fix}",
            )

    def _full_hosts(self) -> Iterator[Shortage]:
        for host in self.hosts:
            held = sum(host.held.values())
            if held > host.capacity:
                yield (
                    held / host.capacity,
                    f"host of node {host.node}: {_gib(held)}, but it has {_gib(host.capacity)}; most of it: "
                    + _largest(host.held),
                )

    @property
    def warnings(self) -> list[str]:
        """What fits but is not good, one line each, worst first."""
        found: dict[str, float] = {}
        for kind in self.step.busy if self.gpus else ():
            idle = self.step.idle(kind)
            if idle > IDLE:
                line = f"the cards of {' and '.join(kind)} wait {idle:.0%} of a step"
                found[f"{line}; let them share, see --suggest"] = idle
        for load in self.gpus:
            share = load.peak / load.capacity
            if load.fits and share > TIGHT:
                line = f"the cards of {' and '.join(load.roles)} are {share:.0%} full in `{load.peak_phase}`"
                found[f"{line}; a longer sample or a fragment more ends the run"] = share
        return sorted(found, key=lambda line: -found[line])


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _largest(held: Held, count: int = 3) -> str:
    first = sorted(held.items(), key=lambda entry: -entry[1])[:count]
    return ", ".join(f"{role}'s {item} {_gib(size)}" for (role, item), size in first)
