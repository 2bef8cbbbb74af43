"""What GPUs and hosts of a plan hold, and what of it is too much. Pure.

`orchestrator.planning` makes a Layout; `orchestrator.plan_map` draws it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.groups import ENGINES
from cluster.memory import GIB, PHASES, EngineSize, ModelSize
from cluster.plan import Plan, Slot

USABLE = 0.95
"""Of a card: the rest is lost between blocks. An assumption."""

Held = dict[tuple[str, str], float]
"""(role, item) → bytes."""


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
        return max(PHASES, key=lambda phase: sum(self.phases[phase].values()))

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
class Layout:
    """A plan with its bytes."""

    plan: Plan
    gpus: tuple[GpuLoad, ...]
    hosts: tuple[HostLoad, ...]
    sizes: dict[str, ModelSize]
    """Role → its model."""
    engines: EngineSize
    notes: tuple[str, ...]
    """What had to be assumed."""

    @property
    def shortages(self) -> list[str]:
        """One line for each kind of GPU or host that is too small, worst first; empty if everything fits."""
        groups: dict[tuple[str, ...], GpuLoad] = {}
        for load in self.gpus:
            if not load.fits and (load.roles not in groups or load.peak > groups[load.roles].peak):
                groups[load.roles] = load
        lines = [
            (
                load.peak / load.capacity,
                f"GPUs of {' and '.join(load.roles)}: {_gib(load.peak)} in `{load.peak_phase}`, but "
                f"a card has {_gib(load.capacity)} ({USABLE:.0%} of it usable); most of it: "
                + _largest(load.phases[load.peak_phase]),
            )
            for load in groups.values()
        ]
        card = min((load.capacity for load in self.gpus if ENGINES in load.roles), default=math.inf)
        weights, sample = self.engines.weights, self.engines.kv_of_a_sample
        if weights + sample > self.engines.utilization * card:
            lines.append(
                (
                    math.inf,
                    f"the engines: rollout.engine.gpu_memory_utilization={self.engines.utilization:g} has no room for "
                    f"one sample beside the weights ({_gib(weights)} and {_gib(sample)} on each card); use "
                    f"{(weights + sample) / card + 0.05:.2f} or more",
                )
            )
        for host in self.hosts:
            held = sum(host.held.values())
            if held > host.capacity:
                lines.append(
                    (
                        held / host.capacity,
                        f"host of node {host.node}: {_gib(held)} offloaded or asleep, but it has {_gib(host.capacity)}",
                    )
                )
        return [line for _, line in sorted(lines, reverse=True)]


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def _largest(held: Held, count: int = 3) -> str:
    first = sorted(held.items(), key=lambda entry: -entry[1])[:count]
    return ", ".join(f"{role}'s {item} {_gib(size)}" for (role, item), size in first)
