"""The layout of PPO: which role is on which GPU, whether it fits, and how long a step takes, before anything starts.

A RunConfig flows in; a PlannedLayout (the plan, what every GPU and host holds in each phase, seconds and price of a
step) flows out. No GPU, no Ray, no weights.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cluster.config import Efficiency
from cluster.estimate.engine_memory import EngineSize
from cluster.estimate.memory import GIB, MEMORY_PHASES, RoleSize
from cluster.estimate.model_size import ModelSize
from cluster.placement.plan import Plan, Slot, plan, ranks_of, tensor_parallel_size
from cluster.role_table import ACTOR, ENGINES, REWARD, row_of, trained_roles
from orchestrator.config.base import BaseConfig
from orchestrator.config.role_needs import ppo_roles, role_needs
from orchestrator.config.run import RunConfig
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.schema import section_key
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.loads import loads_of
from orchestrator.planning.planned_layout import PlannedLayout
from orchestrator.planning.predicted_step import HALF, step_time
from orchestrator.sizes.model_sizes import adapters, model_size
from orchestrator.sizes.model_sources import UnknownModel
from roles.config.models import FrozenRole, TrainedRole


def layout(config: RunConfig, efficiency: Efficiency | None = None, made: Plan | None = None) -> PlannedLayout:
    """The layout of `tetrarch train`. Raises PlacementError or ConfigError if there is none.

    Args:
        efficiency: share of the published rates that is reached; None: `efficiency.yaml` beside this file.
        made: the plan for the same placement and roles, if it exists already.
    """
    efficiency = efficiency or load_efficiency()
    made = made or plan(config.placement, role_needs(config, ppo_roles(config)))
    sizes, notes = _model_sizes(config)
    roles = _role_sizes(config, made, sizes)
    engines = engine_size(config, sizes[ACTOR])
    idle = {f"train {role}" for role in trained_roles() if role not in made.roles}
    phases = [phase for phase in MEMORY_PHASES if phase not in idle]
    if config.retraining is not None:
        phases.insert(phases.index("push"), f"train {REWARD}")
        notes.append(
            f"a retraining of the reward model (every {config.retraining.every} steps) is not in the seconds of a step"
        )
    if config.ppo.ptx is not None:
        share = efficiency.response_share or HALF
        notes.append(f"rows of ppo.ptx.data: assumed a mean of {share:.0%} of ppo.ptx.max_tokens (response_share)")
    if config.ppo.dynamic_sampling is not None:
        rounds = config.ppo.dynamic_sampling.rounds
        notes.append(
            f"ppo.dynamic_sampling: the seconds of a step are those of one round; each of up to {rounds - 1} others "
            "generates and scores other prompts in place of those without a spread"
        )
    loads = loads_of(config, made, roles, engines, phases, efficiency.beside_gib)
    step = step_time(config, made, loads.pools, loads.kinds, roles, engines, efficiency)
    notes += loads.notes
    return PlannedLayout(
        made, loads.gpus, loads.hosts, sizes, engines, tuple(notes), step, config.steps, loads.price_per_hour
    )


def role_sizes(config: RunConfig) -> dict[str, RoleSize]:
    """Role with a model under ZeRO → its size. UnknownModel if the size of a model is not known."""
    return _role_sizes(config, plan(config.placement, role_needs(config, ppo_roles(config))), _model_sizes(config)[0])


def _role_sizes(config: RunConfig, made: Plan, sizes: dict[str, ModelSize]) -> dict[str, RoleSize]:
    return {role: _role_size(config, made.of(role), sizes[role]) for role in config.model_roles if role != ENGINES}


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
    role, longest = slots[0].role, config.longest_sample
    ptx = config.ppo.ptx if role == ACTOR else None
    held = max(longest, ptx.max_tokens) if ptx else longest
    size = sharded_size(config, slots, model, config.section(role), longest=held)
    head_only = role == REWARD and config.retraining is not None and config.retraining.freeze_backbone
    return replace(
        size,
        adapters=model.hidden if head_only else adapters(config, role) if size.trained else None,
        head_only=head_only,
        averaged=role == ACTOR and config.actor.ema_decay is not None,
        scored_share=1.0 if ptx else config.longest_response / longest,  # all tokens of a text have logits
    )


def sharded_size(
    config: BaseConfig, slots: list[Slot], model: ModelSize, section: FrozenRole, *, longest: int
) -> RoleSize:
    """The size of a role under ZeRO on its ranks' slots; `longest`: tokens that one forward pass must be able to
    hold."""
    return RoleSize(
        role=slots[0].role,
        model=model,
        ranks=len(slots),
        number_bytes=2 if config.dtype == "bfloat16" else 4,
        stage=section.zero.stage,
        trained=isinstance(section, TrainedRole),
        offload_optimizer=section.zero.offload_optimizer,
        offload_parameters=section.zero.offload_parameters,
        sleep=section.zero.sleep,
        checkpointing=isinstance(section, TrainedRole) and section.gradient_checkpointing,
        fused=config.device == "cuda" and section.fused_kernels and model.fusible,
        tokens=max(section.micro_batch_tokens, longest),
        nodes=len({slot.node for slot in slots}),
        threads=slots[0].threads,
        device=config.device,
        saved_behind=config.checkpoint.asynchronous,
    )


def engine_size(config: SamplingConfig, model: ModelSize) -> EngineSize:
    """The size of one vLLM engine with the policy."""
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
