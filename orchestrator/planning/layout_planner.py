"""`tetrarch plan`: which role is on which GPU, whether it fits, and how long a step takes, before anything starts.

A RunConfig flows in; a PlannedLayout (the plan, what every GPU and host holds in each phase, seconds and price of a
step) flows out. No GPU, no Ray, no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.config import BesideCounted, Efficiency, LocalPlacement, PoolConfig
from cluster.estimate.memory import (
    GIB,
    MEMORY_PHASES,
    PROCESS,
    RUNTIME,
    SERVICES,
    STAGING_BUFFERS,
    Account,
    EngineSize,
    RoleSize,
    engine,
    engine_host,
    engine_without_gpu,
    host_states,
    rank_without_gpu,
    staging,
    states,
    working,
)
from cluster.estimate.model_size import ModelSize
from cluster.placement.accelerators import UNKNOWN
from cluster.placement.openrlhf_groups import as_groups
from cluster.placement.plan import Plan, Slot, plan, ranks_of, tensor_parallel_size
from cluster.role_table import ACTOR, ENGINES, REWARD, row_of, trained_roles
from orchestrator.config.role_needs import ppo_roles, role_needs
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.planned_layout import GpuLoad, Held, HostLoad, PlannedLayout
from orchestrator.planning.predicted_step import card_gib, step_time
from orchestrator.planning.this_machine import as_pool
from orchestrator.sizes.model_sizes import adapters, model_size
from orchestrator.sizes.model_sources import UnknownModel
from roles.config.models import TrainedRole

PHASE_NAMES = {phase: "update" if phase.startswith("train") else phase for phase in MEMORY_PHASES if phase != "push"}
"""Phase of a card's memory → its name in a step's metrics. A measured push ends when the engines are awake for the
next step, so it differs from the plan's push and is left out."""


def layout(config: RunConfig, efficiency: Efficiency | None = None, made: Plan | None = None) -> PlannedLayout:
    """The layout of `tetrarch train`. Raises PlacementError or ConfigError if there is none.

    Args:
        efficiency: share of the published rates that is reached; None: `efficiency.yaml` beside this file.
        made: the plan for the same placement and roles, if it exists already.
    """
    made = made or plan(config.placement, role_needs(config, ppo_roles(config)))
    sizes, notes = _model_sizes(config)
    roles = _role_sizes(config, made, sizes)
    engines = _engine_size(config, sizes[ACTOR])
    pools = _pools(config, made)
    if any(pool.gpus_per_node and not pool.accelerator for pool in pools):
        notes.append(f"the cards are not named (`accelerator` of the pool): they count as {UNKNOWN}")
    nodes = _by_node(made)
    cards = sorted({(slot.node, gpu) for slot in made.slots for gpu in slot.gpus})
    seen: dict[tuple[object, ...], dict[str, Held]] = {}
    gpus = tuple(_gpu_load(nodes[node], node, gpu, pools[node], roles, engines, seen) for node, gpu in cards)
    efficiency = efficiency or load_efficiency()
    for held in seen.values():
        _add_measured(held, efficiency.beside_gib)
    hosts = tuple(_host_load(nodes[node], node, pools[node], roles, engines) for node in range(made.nodes))
    kinds = list(dict.fromkeys(load.roles for load in gpus))
    step = step_time(config, made, pools, kinds, roles, engines, efficiency)
    prices = [pool.price_per_hour for pool in pools if pool.price_per_hour is not None]
    price = sum(prices) if len(prices) == len(pools) else None
    return PlannedLayout(made, gpus, hosts, sizes, engines, tuple(notes), step, config.steps, price)


def role_sizes(config: RunConfig) -> dict[str, RoleSize]:
    """Role with a model under ZeRO → its size. UnknownModel if the size of a model is not known."""
    return _role_sizes(config, plan(config.placement, role_needs(config, ppo_roles(config))), _model_sizes(config)[0])


def _role_sizes(config: RunConfig, made: Plan, sizes: dict[str, ModelSize]) -> dict[str, RoleSize]:
    return {role: _role_size(config, made.of(role), sizes[role]) for role in config.model_roles if role != ENGINES}


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
    roles: dict[str, RoleSize],
    engines: EngineSize,
    seen: dict[tuple[object, ...], dict[str, Held]],
) -> GpuLoad:
    """The load of one GPU. `seen`: memory of cards with the same roles and size, a cache that is filled here."""
    here = tuple(slot for slot in neighbours if gpu in slot.gpus)
    key = (card_gib(pool), *(slot.role for slot in here))
    if key not in seen:
        seen[key] = _held(here, card_gib(pool) * GIB, roles, engines)
    return GpuLoad(node, gpu, card_gib(pool) * GIB, here, seen[key])


def _add_measured(held: dict[str, Held], beside: BesideCounted) -> None:
    """Add to each phase the memory that a measured run held beyond what is counted."""
    for phase, name in PHASE_NAMES.items():
        if extra := getattr(beside, name):
            held[phase]["all", "measured beside what is counted"] = extra * GIB


def _held(here: Sequence[Slot], capacity: float, roles: dict[str, RoleSize], engines: EngineSize) -> dict[str, Held]:
    """Bytes that a card holds in each phase."""
    side_by_side = {*trained_roles()} <= {slot.role for slot in here}
    pushed_by = "ipc" if ENGINES in {slot.role for slot in here} else "nccl"
    phases: dict[str, Held] = {phase: {} for phase in MEMORY_PHASES}
    for slot in here:
        for phase, held in phases.items():
            account = (
                engine(engines, capacity, phase)
                if slot.role == ENGINES
                else _of_role(roles[slot.role], phase, side_by_side, pushed_by)
            )
            held.update({(slot.role, item): size for item, size in account.items() if size})
    return phases


def _of_role(role: RoleSize, phase: str, side_by_side: bool, pushed_by: str) -> Account:
    """Bytes of one role on a card in a phase.

    `side_by_side`: all trained roles share the card and are updated at the same time; `pushed_by`: `ipc` if the engines
    share the card too, else `nccl`.
    """
    training = role.trained and (phase == f"train {role.role}" or (side_by_side and phase.startswith("train")))
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


def _host_load(
    here: list[Slot], node: int, pool: PoolConfig, roles: dict[str, RoleSize], engines: EngineSize
) -> HostLoad:
    held: Held = {}
    for slot in here:
        account = _on_host(slot, roles, engines)
        for item, size in account.items():
            key = (slot.role, item)
            held[key] = held.get(key, 0.0) + size * _processes(slot)
    if not any(slot.gpus for slot in here):
        held["this run", "Ray and the driver"] = SERVICES
    return HostLoad(node, pool.host_memory_gib * GIB, held)


def _on_host(slot: Slot, roles: dict[str, RoleSize], engines: EngineSize) -> Account:
    if slot.role == ENGINES:
        return engine_host(engines) if slot.gpus else engine_without_gpu(engines)
    if slot.role not in roles:
        return {"libraries": PROCESS}
    return host_states(roles[slot.role]) if slot.gpus else rank_without_gpu(roles[slot.role])


def _processes(slot: Slot) -> int:
    return slot.cpus // slot.threads if slot.role == ENGINES else 1


def _pools(config: RunConfig, made: Plan) -> list[PoolConfig]:
    """The pool of each planned node."""
    if isinstance(config.placement, LocalPlacement):
        return [as_pool(int(made.demand(0).gpus))]
    placement = as_groups(config.placement)
    return [placement.pools[name] for name in made.pools]


def _model_sizes(config: RunConfig) -> tuple[dict[str, ModelSize], list[str]]:
    """Role → size of its model; and notes on what was assumed for models that do not exist yet."""
    cache, missing = Path(config.model_cache), {}
    sizes: dict[str, ModelSize] = {}
    for role in [role for role in config.model_roles if role != ENGINES]:
        model, head = config.model_of(role), row_of(role).value_head
        assert model is not None  # guaranteed by a rule of the configuration
        key = f"{section_key(_whose_model(config, role))}.model"
        try:
            sizes[role] = model_size(model, key, cache, value_head=head)
        except UnknownModel:
            if not head:
                raise
            missing[key] = f"{key}.path={model.path} is not there yet: counted as large as the actor"
            sizes[role] = model_size(config.actor.model, "actor.model", cache, value_head=True)
    notes, guessed = list(missing.values()), sorted(role for role, size in sizes.items() if size.estimated)
    if guessed:
        notes.append(f"{', '.join(guessed)}: an unknown architecture, estimated from the size of its weights")
    return sizes, notes


def _whose_model(config: RunConfig, role: str) -> str:
    """The role whose section names the model from which `role` starts."""
    if config.section(role).model is not None:
        return role
    return ACTOR if config.model_of(role) == config.actor.model else REWARD


def _role_size(config: RunConfig, slots: list[Slot], model: ModelSize) -> RoleSize:
    role = slots[0].role
    section: Any = config.section(role)
    longest = config.longest_sample
    trained = isinstance(section, TrainedRole)
    return RoleSize(
        role=role,
        model=model,
        ranks=len(slots),
        number_bytes=2 if config.dtype == "bfloat16" else 4,
        stage=section.zero.stage,
        trained=trained,
        adapters=adapters(config, role) if trained else None,
        averaged=role == ACTOR and config.actor.ema_decay is not None,
        offload_optimizer=section.zero.offload_optimizer,
        offload_parameters=section.zero.offload_parameters,
        sleep=section.zero.sleep,
        checkpointing=trained and section.gradient_checkpointing,
        tokens=max(section.micro_batch_tokens, longest),
        scored_share=config.longest_response / longest,
        nodes=len({slot.node for slot in slots}),
        threads=slots[0].threads,
        device=config.device,
    )


def _engine_size(config: RunConfig, model: ModelSize) -> EngineSize:
    engine_config = config.rollout.engine
    return EngineSize(
        model=model,
        number_bytes=2 if (engine_config.dtype or config.dtype) == "bfloat16" else 4,
        parallel=tensor_parallel_size(config.placement),
        utilization=engine_config.gpu_memory_utilization,
        sleep=engine_config.sleep,
        longest=config.longest_sample,
        number=ranks_of(config.placement, ENGINES),
        max_sequences=engine_config.max_sequences,
        kv_cache=engine_config.kv_cache_gib * GIB,
        eager=config.device == "cpu" if engine_config.enforce_eager is None else engine_config.enforce_eager,
    )
