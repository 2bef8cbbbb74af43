"""What the cards and hosts of a plan hold in each phase: sizes of roles and engines flow in, Loads flow out. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config import BesideCounted, LocalPlacement, PoolConfig
from cluster.estimate.engine_memory import STAGING_BUFFERS, EngineSize, engine, engine_host, engine_without_gpu, staging
from cluster.estimate.memory import (
    ENGINE_PROCESS,
    GIB,
    IMPORTED,
    MEMORY_PHASES,
    PROCESS,
    RUNTIME,
    SERVICES,
    Account,
    RoleSize,
    host_states,
    rank_without_gpu,
    states,
    working,
    working_without_gpu,
)
from cluster.estimate.simulation import Kind
from cluster.placement.accelerators import UNKNOWN
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan, Slot
from cluster.role_table import ACTOR, ENGINES, row_of, trained_roles
from orchestrator.config.base import BaseConfig
from orchestrator.planning.planned_layout import GpuLoad, Held, HostLoad
from orchestrator.planning.predicted_step import card_gib
from orchestrator.planning.this_machine import as_pool

PHASE_NAMES = {phase: "update" if phase.startswith("train") else phase for phase in MEMORY_PHASES if phase != "push"}
"""Phase of a card's memory → its name in a step's metrics. A measured push ends when the engines are awake for the
next step, so it differs from the plan's push and is left out."""

NOTHING_BESIDE = BesideCounted()


@dataclass(frozen=True, slots=True)
class Loads:
    """All cards and hosts of a plan."""

    gpus: tuple[GpuLoad, ...]
    hosts: tuple[HostLoad, ...]
    pools: list[PoolConfig]
    """The pool of each planned node."""

    @property
    def kinds(self) -> list[Kind]:
        """Which roles share cards."""
        return list(dict.fromkeys(load.roles for load in self.gpus))

    @property
    def notes(self) -> list[str]:
        """What was assumed of the cards."""
        if any(pool.gpus_per_node and not pool.accelerator for pool in self.pools):
            return [f"the cards are not named (`accelerator` of the pool): they count as {UNKNOWN}"]
        return []

    @property
    def price_per_hour(self) -> float | None:
        """Price of all nodes per hour; None if a pool has no price."""
        prices = [pool.price_per_hour for pool in self.pools if pool.price_per_hour is not None]
        return sum(prices) if len(prices) == len(self.pools) else None


def loads_of(
    config: BaseConfig,
    made: Plan,
    roles: dict[str, RoleSize],
    engines: EngineSize | None,
    phases: Sequence[str],
    beside: BesideCounted = NOTHING_BESIDE,
) -> Loads:
    """What the plan's cards and hosts hold.

    Args:
        roles: size of every role under ZeRO.
        engines: size of an engine, if the plan has engines.
        phases: phases of a card's memory, in their order.
        beside: memory of a card that is not counted but was measured.
    """
    pools, sizes = _pools(config, made), _Sizes(roles, engines, tuple(phases))
    nodes = _by_node(made)
    cards = sorted({(slot.node, gpu) for slot in made.slots for gpu in slot.gpus})
    seen: dict[tuple[object, ...], dict[str, Held]] = {}
    gpus = tuple(_gpu_load(nodes[node], node, gpu, pools[node], sizes, seen) for node, gpu in cards)
    for held in seen.values():
        _add_measured(held, beside)
    hosts = tuple(_host_load(nodes[node], node, pools[node], sizes) for node in range(made.nodes))
    return Loads(gpus, hosts, pools)


@dataclass(frozen=True, slots=True)
class _Sizes:
    roles: dict[str, RoleSize]
    engines: EngineSize | None
    phases: tuple[str, ...]


def _by_node(made: Plan) -> list[list[Slot]]:
    found: list[list[Slot]] = [[] for _ in range(made.nodes)]
    for slot in made.slots:
        found[slot.node].append(slot)
    return found


def _gpu_load(
    neighbours: list[Slot],
    node: int,
    gpu: int,
    pool: PoolConfig,
    sizes: _Sizes,
    seen: dict[tuple[object, ...], dict[str, Held]],
) -> GpuLoad:
    """The load of one GPU. `seen`: memory of cards with the same roles and size, a cache that is filled here."""
    here = tuple(slot for slot in neighbours if gpu in slot.gpus)
    key = (card_gib(pool), *(slot.role for slot in here))
    if key not in seen:
        seen[key] = _held(here, card_gib(pool) * GIB, sizes)
    return GpuLoad(node, gpu, card_gib(pool) * GIB, here, seen[key])


def _add_measured(held: dict[str, Held], beside: BesideCounted) -> None:
    """Add to each phase the memory that a measured run held beyond what is counted."""
    for phase, own in held.items():
        name = PHASE_NAMES.get(phase)
        if name is not None and (extra := getattr(beside, name)):
            own["all", "measured beside what is counted"] = extra * GIB


def _held(here: Sequence[Slot], capacity: float, sizes: _Sizes) -> dict[str, Held]:
    """Bytes that a card holds in each phase."""
    side_by_side = {*trained_roles()} <= {slot.role for slot in here}
    pushed_by = "ipc" if ENGINES in {slot.role for slot in here} else "nccl"
    phases: dict[str, Held] = {phase: {} for phase in sizes.phases}
    for slot in here:
        for phase, held in phases.items():
            account = (
                engine(_engines(sizes), capacity, phase)
                if slot.role == ENGINES
                else _of_role(sizes.roles[slot.role], phase, side_by_side, pushed_by)
            )
            held.update({(slot.role, item): size for item, size in account.items() if size})
    return phases


def _engines(sizes: _Sizes) -> EngineSize:
    assert sizes.engines is not None, "the plan has engines"
    return sizes.engines


def _of_role(role: RoleSize, phase: str, side_by_side: bool, pushed_by: str) -> Account:
    """Bytes of one role on a card in a phase.

    `side_by_side`: all trained roles share the card and are updated at the same time; `pushed_by`: `ipc` if the engines
    share the card too, else `nccl`.
    """
    others = [f"train {other}" for other in trained_roles()] if side_by_side and row_of(role.role).trained else []
    training = role.trained and phase in (f"train {role.role}", *others)
    account = {**states(role, training=training), "runtime": RUNTIME}
    if training or (phase == "score" and phase in row_of(role.role).phases):
        account |= working(role, training=training)
    elif phase == "push" and role.role == ACTOR and role.ranks > 1:
        account["gathered layers"] = role.number_bytes * (role.model.layer + role.model.embedding)
    if phase == "push" and role.role == ACTOR:
        account["packed for the engines"] = STAGING_BUFFERS[pushed_by] * staging(role.model, role.number_bytes)
    if phase == "push" and role.role == ACTOR and role.adapters is not None:
        # The product of an adapter's matrices in float32, and its sum with the weight in the engines' dtype.
        account["merged matrix"] = 10 * role.model.hidden * role.model.intermediate
    return account


def _host_load(here: list[Slot], node: int, pool: PoolConfig, sizes: _Sizes) -> HostLoad:
    held: Held = {}
    for slot in here:
        account = _on_host(slot, sizes)
        for item, size in account.items():
            key = (slot.role, item)
            held[key] = held.get(key, 0.0) + size * _processes(slot)
    role, size = max(((slot.role, _saved(slot, sizes)) for slot in here), key=lambda saved: saved[1], default=("", 0.0))
    if size:  # roles save their models one after the other
        held[role, "whole model, while it is saved"] = size
    if not any(slot.gpus for slot in here):
        held["this run", "Ray and the driver"] = SERVICES
    return HostLoad(node, pool.host_memory_gib * GIB, held)


def _on_host(slot: Slot, sizes: _Sizes) -> Account:
    if slot.role == ENGINES and not slot.gpus:
        return engine_without_gpu(_engines(sizes))
    if slot.role == ENGINES:
        return {"libraries": ENGINE_PROCESS + IMPORTED, **engine_host(_engines(sizes))}
    if slot.role not in sizes.roles:
        return {"libraries": PROCESS}
    if not slot.gpus:
        return rank_without_gpu(sizes.roles[slot.role])
    return {"libraries": PROCESS + IMPORTED, **host_states(sizes.roles[slot.role])}


def _saved(slot: Slot, sizes: _Sizes) -> float:
    """Bytes of the whole model that the first rank of a trained role collects on its host, beside what it always has
    there. Without GPUs it computes nothing meanwhile."""
    role = sizes.roles.get(slot.role)
    if role is None or not role.trained or slot.rank:
        return 0.0
    whole = float(role.model.parameters * role.number_bytes)
    return whole if slot.gpus else max(whole - sum(working_without_gpu(role).values()), 0.0)


def _processes(slot: Slot) -> int:
    return slot.cpus // slot.threads if slot.role == ENGINES else 1


def _pools(config: BaseConfig, made: Plan) -> list[PoolConfig]:
    """The pool of each planned node."""
    if isinstance(config.placement, LocalPlacement):
        return [as_pool(int(made.demand(0).gpus))]
    placement = as_groups(config.placement)
    return [placement.pools[name] for name in made.pools]
