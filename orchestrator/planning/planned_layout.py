"""What the GPUs and hosts of a plan hold, and which of them are too small. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from cluster.estimate.engine_memory import EngineSize
from cluster.estimate.memory import GIB, RUNTIME
from cluster.estimate.model_size import ModelSize
from cluster.placement.plan import Plan, Slot
from cluster.role_table import ENGINES
from orchestrator.planning.predicted_step import StepTime

USABLE = 0.95
"""Usable share of a card; the rest is lost between blocks. An assumption."""
USABLE_HOST = 0.95
"""Usable share of a host's memory: beyond it, Ray ends processes there (its `memory_usage_threshold`)."""

TIGHT = 0.85
"""Share of a card's memory above which a warning is given."""
TIGHT_HOST = 0.9
"""Share of a host's memory above which a warning is given."""
IDLE = 0.5
"""Share of a step that cards may be idle before a warning is given."""

Held = dict[tuple[str, str], float]
"""(role, item) → bytes."""
Shortage = tuple[float, str]
"""(severity, message)."""


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """One GPU of the plan."""

    node: int
    gpu: int
    capacity: float
    """Memory in bytes."""
    slots: tuple[Slot, ...]
    """The slots of the ranks on this GPU."""
    phases: dict[str, Held]
    """What the GPU holds in each phase, in the order of the phases."""

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles on this GPU, each once."""
        return tuple(dict.fromkeys(slot.role for slot in self.slots))

    @property
    def peak_phase(self) -> str:
        """The phase in which the GPU holds most."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak(self) -> float:
        """Bytes in the peak phase."""
        return sum(self.phases[self.peak_phase].values())

    @property
    def fits(self) -> bool:
        """Whether the peak fits the usable share of the card."""
        return self.peak <= USABLE * self.capacity


@dataclass(frozen=True, slots=True)
class HostLoad:
    """One node of the plan."""

    node: int
    capacity: float
    """Memory in bytes."""
    held: Held

    @property
    def share(self) -> float:
        """Share of the memory that is held."""
        return sum(self.held.values()) / self.capacity

    @property
    def fits(self) -> bool:
        """Whether what is held fits the usable share of the memory."""
        return self.share <= USABLE_HOST


@dataclass(frozen=True, slots=True)
class PlannedLayout:
    """A plan with the bytes on its GPUs and hosts and the time of a step."""

    plan: Plan
    gpus: tuple[GpuLoad, ...]
    hosts: tuple[HostLoad, ...]
    sizes: dict[str, ModelSize]
    """Role → size of its model."""
    engines: EngineSize | None
    """One of the engines; None without engines."""
    notes: tuple[str, ...]
    """Assumptions, in words."""
    step: StepTime
    """Predicted time of one step."""
    steps: int | None
    """Steps of the run; None if they follow from data that a plan does not read."""
    price_per_hour: float | None
    """Price of all nodes per hour; None if a pool has no price."""
    title: str = ""
    """What it is the layout of, if a command has several after one another."""

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases of a card's memory; none without GPUs."""
        return tuple(self.gpus[0].phases) if self.gpus else ()

    @property
    def price_per_step(self) -> float | None:
        """Price of a step in the pools' currency; None if a pool has no price."""
        return None if self.price_per_hour is None else self.price_per_hour * self.step.total / 3600

    @property
    def shortages(self) -> list[str]:
        """One line for each kind of GPU or host that is too small, worst first; empty if everything fits."""
        found = [*self._full_cards(), *self._engines_without_room(), *self._full_hosts()]
        return [line for _, line in sorted(found, reverse=True)]

    def _full_cards(self) -> Iterator[Shortage]:
        """The shortage of each kind of GPU, by its fullest card."""
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
        """Attention heads that cannot be split over an engine's GPUs, and shares of a card that are too small for a
        sample."""
        engines = self.engines
        if engines is None:
            return
        parallel, model = engines.parallel, engines.model
        if not model.splits(parallel):
            fitting = ", ".join(str(n) for n in range(1, model.heads + 1) if model.splits(n))
            yield (
                math.inf,
                f"the engines: {model.heads} attention heads ({model.kv_heads} of keys and values) do not spread "
                f"over a tensor-parallel size of {parallel}; use one of {fitting}",
            )
        card = min((load.capacity for load in self.gpus if ENGINES in load.roles), default=math.inf)
        weights, sample = engines.weights, engines.kv_of_a_sample
        if engines.least > engines.utilization * card:
            enough = math.ceil(100 * engines.least / card) / 100
            fix = f"use {enough:.2f} or more" if enough <= USABLE else "use a larger tensor-parallel size"
            yield (
                math.inf,
                f"the engines: rollout.engine.gpu_memory_utilization={engines.utilization:g} has no room for "
                f"one sample beside the weights and vLLM's own memory ({_gib(sample)}, {_gib(weights)} and "
                f"{_gib(RUNTIME)} on each card); {fix}",
            )

    def _full_hosts(self) -> Iterator[Shortage]:
        for host in self.hosts:
            if not host.fits:
                yield (
                    host.share,
                    f"host of node {host.node}: {_gib(host.share * host.capacity)}, but it has {_gib(host.capacity)} "
                    f"({USABLE_HOST:.0%} of it usable, then Ray ends processes); most of it: " + _largest(host.held),
                )

    @property
    def warnings(self) -> list[str]:
        """Problems of a layout that fits, one line each, worst first."""
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
        tight = [host for host in self.hosts if host.fits and host.share > TIGHT_HOST]
        if tight:
            fullest = max(tight, key=lambda host: host.share)
            line = f"the host of node {fullest.node} is {fullest.share:.0%} full"
            found[f"{line}; Ray ends processes at {USABLE_HOST:.0%}"] = fullest.share
        return sorted(found, key=lambda line: -found[line])


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _largest(held: Held, count: int = 3) -> str:
    first = sorted(held.items(), key=lambda entry: -entry[1])[:count]
    return ", ".join(f"{role}'s {item} {_gib(size)}" for (role, item), size in first)
