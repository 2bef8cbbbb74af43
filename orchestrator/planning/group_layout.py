"""The layouts of trainings on a data set: one group learns; before it, engines may sample what it learns from.

A configuration and what an optimizer step holds flow in, a PlannedLayout flows out. No GPU, no weights, no data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from cluster.config import Efficiency
from cluster.estimate.engine_memory import EngineSize
from cluster.estimate.generation import generate_s
from cluster.estimate.lengths import lognormal
from cluster.estimate.memory import RoleSize
from cluster.estimate.model_size import ModelSize
from cluster.estimate.roofline import Workload, update_s
from cluster.estimate.simulation import Course, Event
from cluster.placement.plan import plan
from cluster.role_table import ACTOR, ENGINES
from orchestrator.config.base import BaseConfig
from orchestrator.config.role_needs import RoleNames, role_needs
from orchestrator.config.sampling import SamplingConfig
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.layout_planner import engine_size, sharded_size
from orchestrator.planning.loads import Loads, loads_of
from orchestrator.planning.planned_layout import PlannedLayout
from orchestrator.planning.predicted_step import (
    HALF,
    StepTime,
    kv_room,
    lengths_from,
    rates_of,
    response_lengths,
)
from orchestrator.sizes.model_sizes import model_size, trained_by_lora

COUNTED_PROMPTS = 1000
"""Number of prompts whose seconds are told if the data set says how many there are."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What a group learns from in an optimizer step.

    Example: 64 demonstrations of at most 2048 tokens are `Learning("actor", "sft", samples=64, longest=2048)`.
    """

    role: str
    """The role on whose ranks it learns."""
    key: str
    """Key path of its section, a key of `BaseConfig.trained`."""
    samples: int
    """Samples of an optimizer step, over all ranks."""
    longest: int
    """Most tokens of a sample."""
    together: int = 1
    """Samples that one forward pass always holds together, such as the two responses of a pair."""
    value_head: bool = False
    """Whether the model gives one number per token instead of one per word of the vocabulary."""
    head_only: bool = False
    """Whether only the value head is trained."""
    notes: tuple[str, ...] = ()
    """What was assumed of the samples, in words."""


def learning_layout(
    config: BaseConfig, learning: Learning, efficiency: Efficiency | None = None, *, title: str = ""
) -> PlannedLayout:
    """The layout while one group learns. Raises PlacementError or ConfigError if there is none."""
    efficiency = efficiency or load_efficiency()
    made = plan(config.placement, role_needs(config, {learning.role: None}))
    section, key, cache = config.trained[learning.key], f"{learning.key}.model", Path(config.model_cache)
    assert section.model is not None, "a section that is trained on a data set names its model"
    model = model_size(section.model, key, cache, value_head=learning.value_head)
    adapters = trained_by_lora(section, key, cache, value_head=learning.value_head)
    longest = learning.longest * learning.together
    size = replace(
        sharded_size(config, made.of(learning.role), model, section, longest=longest),
        adapters=model.hidden if learning.head_only else adapters,
        head_only=learning.head_only,
        scored_share=1.0,
    )
    loads = loads_of(config, made, {learning.role: size}, None, ("score", f"train {learning.role}"))
    step = _optimizer_step(config, learning, size, loads, efficiency)
    notes = [
        "the number of optimizer steps follows from the data, which a plan does not read; tests on what is held out "
        "and saving are not counted",
        *learning.notes,
        *([f"{learning.role}: an unknown architecture, estimated from the size of its weights"] * model.estimated),
        *loads.notes,
    ]
    sizes = {learning.role: model}
    return PlannedLayout(
        made, loads.gpus, loads.hosts, sizes, None, tuple(notes), step, None, loads.price_per_hour, title
    )


def _optimizer_step(
    config: BaseConfig, learning: Learning, size: RoleSize, loads: Loads, efficiency: Efficiency
) -> StepTime:
    """The predicted optimizer step; all of a sample counts as its response."""
    share, spread = efficiency.response_share or HALF, efficiency.response_spread
    lengths = lognormal(share * learning.longest, spread, 1, learning.longest)
    rates = rates_of(loads.pools[0], size.ranks, config.dtype, efficiency)
    work = Workload(learning.samples, 1, 0.0, lengths.mean, epochs=1, mini_batches=1, responses=lengths)
    seconds = efficiency.correction.update * update_s(size, work, rates)
    return StepTime(
        {"update": seconds},
        {(learning.role,): seconds},
        lengths.mean,
        Course({"update": seconds}, (Event(learning.role, None, "update", 0.0, seconds),)),
        lengths=lengths,
        lengths_from=f"assumed: a mean of {share:.0%} of {learning.key}.max_tokens (response_share) with a spread of "
        f"{spread:g} (response_spread)",
        unit=f"optimizer step of {learning.samples} samples",
        items="samples",
    )


def sampling_layout(
    config: SamplingConfig,
    roles: RoleNames,
    *,
    prompts: int | None,
    responses: int,
    efficiency: Efficiency | None = None,
    title: str = "",
) -> PlannedLayout:
    """The layout while engines answer `prompts` prompts (None: as many as a data set has) `responses` times each."""
    efficiency = efficiency or load_efficiency()
    made = plan(config.placement, role_needs(config, roles))
    model = model_size(config.actor.model, "actor.model", Path(config.model_cache))
    engines = engine_size(config, model)
    loads = loads_of(config, made, {}, engines, ("generate",))
    step = _sampling(config, engines, loads, prompts or COUNTED_PROMPTS, responses, efficiency)
    sizes: dict[str, ModelSize] = {ACTOR: model}
    notes = ["what ranks the responses is not counted", *loads.notes]
    return PlannedLayout(
        made, loads.gpus, loads.hosts, sizes, engines, tuple(notes), step, None, loads.price_per_hour, title
    )


def _sampling(
    config: SamplingConfig, engines: EngineSize, loads: Loads, prompts: int, responses: int, efficiency: Efficiency
) -> StepTime:
    lengths = response_lengths(config, efficiency)
    work = Workload(
        samples=prompts * responses,
        responses_per_prompt=responses if config.rollout.engine.prefix_caching else 1,
        prompt_tokens=config.prompts.max_tokens * efficiency.prompt_share,
        response_tokens=lengths.mean,
        epochs=0,
        mini_batches=1,
        responses=lengths,
    )
    pool, dtype = loads.pools[0], config.rollout.engine.dtype or config.dtype
    rates, room = rates_of(pool, engines.number, dtype, efficiency), kv_room(config, engines, pool)
    seconds = efficiency.correction.generate * generate_s(engines, work, rates, room, config.seed)
    return StepTime(
        {"generate": seconds},
        {(ENGINES,): seconds},
        lengths.mean,
        Course({"generate": seconds}, (Event(ENGINES, None, "generate", 0.0, seconds),)),
        prompt_tokens=work.prompt_tokens,
        lengths=lengths,
        lengths_from=lengths_from(config, efficiency),
        unit=f"{prompts} prompts, each answered {responses} times",
    )
