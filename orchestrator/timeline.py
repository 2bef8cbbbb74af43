"""How long a PPO step takes, on paper: each role's seconds, and which of them overlap.

A RunConfig and its plan flow in, a StepTime flows out. Called by `orchestrator.planning`; the order is that of
`orchestrator.ppo.train_step`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.accelerators import ACCELERATORS, UNKNOWN
from cluster.config import Efficiency, PoolConfig
from cluster.generation import generate_s
from cluster.groups import ENGINES
from cluster.lengths import Lengths, fixed, from_quantiles, lognormal, moved_to_mean
from cluster.memory import GIB, EngineSize, RoleSize
from cluster.plan import Plan, engines_neighbours
from cluster.roofline import (
    Rates,
    Workload,
    card_rates,
    cpu_rates,
    push_s,
    score_s,
    update_s,
)
from orchestrator.config import RunConfig
from orchestrator.this_machine import operations_per_s

Kind = tuple[str, ...]
"""The roles that live on one card."""

HALF = 0.5
"""Mean length of a response, as a share of its limit, where nothing is known. An assumption."""


@dataclass(frozen=True, slots=True)
class RoleSeconds:
    """How long each role works in a step, if nobody is in its way."""

    generate: float
    score: dict[str, float]
    """Role → seconds."""
    update: dict[str, float]
    """Role → seconds."""
    push: float


@dataclass(frozen=True, slots=True)
class StepTime:
    """One PPO step."""

    phases: dict[str, float]
    """generate, score (what generation does not hide), update, push → seconds."""
    busy: dict[Kind, float]
    """Cards of these roles → seconds in which they work."""
    response_tokens: float
    """Mean length of a response."""
    prompt_tokens: float = 0.0
    """Mean length of a prompt."""
    lengths: Lengths | None = None
    """Of the responses."""
    lengths_from: str = ""
    """Who says so."""

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.phases.values())

    def idle(self, kind: Kind) -> float:
        """Share of a step in which the cards of these roles wait for others."""
        return 1 - min(self.busy[kind] / self.total, 1)


def step_time(
    config: RunConfig,
    made: Plan,
    pools: Sequence[PoolConfig],
    kinds: Collection[Kind],
    roles: Mapping[str, RoleSize],
    engines: EngineSize,
    efficiency: Efficiency,
) -> StepTime:
    """Of a run's layout.

    Args:
        pools: of each planned node.
        kinds: which roles share cards; without cards, all share the machine.
    """
    first = {role: made.of(role)[0] for role in made.roles}
    rates = {
        role: _rates(pools[slot.node], len(made.of(role)), config.dtype, efficiency) for role, slot in first.items()
    }
    work = workload(config, efficiency)
    shared = "actor" in engines_neighbours(config.placement)  # every rank hands over on its own card
    passes = {"actor": 2} if config.reference.share_actor else {}
    room = _kv_room(config, engines, pools[first[ENGINES].node])
    moved = engines.weights / rates[ENGINES].host if engines.sleep == 1 else 0.0  # to the host, and back for the push
    seconds = RoleSeconds(
        generate=moved + sum(generate_s(engines, part, rates[ENGINES], room) for part in _rounds(config, work)),
        score={role: passes.get(role, 1) * score_s(size, work, rates[role]) for role, size in roles.items()},
        update={role: update_s(size, work, rates[role]) for role, size in roles.items() if size.trained},
        push=moved
        + push_s(
            roles["actor"],
            rates["actor"],
            other_nodes=not shared and any(slot.node != first["actor"].node for slot in made.of(ENGINES)),
            cards=max(pools[first["actor"].node].gpus_per_node, 1),
        ),
    )
    streamed = None
    if config.rollout.stream_samples and not config.rollout.engine.sleep and config.device == "cuda":
        streamed = min(config.rollout.stream_samples * engines.number / work.samples, 1.0)
    step = side_by_side(kinds or [tuple(made.roles)], seconds, efficiency, work.response_tokens, streamed)
    told = lengths_from(config, efficiency)
    return replace(step, prompt_tokens=work.prompt_tokens, lengths=work.lengths, lengths_from=told)


def card_gib(pool: PoolConfig) -> float:
    """Memory of a pool's cards."""
    if pool.gpu_memory_gib is not None:
        return pool.gpu_memory_gib
    return ACCELERATORS[pool.accelerator or UNKNOWN].memory_gib


def _rates(pool: PoolConfig, ranks: int, dtype: str, efficiency: Efficiency) -> Rates:
    if pool.gpus_per_node == 0:
        return cpu_rates(operations_per_s(dtype), ranks, efficiency)
    return card_rates(ACCELERATORS[pool.accelerator or UNKNOWN], efficiency)


def workload(config: RunConfig, efficiency: Efficiency) -> Workload:
    """What a step of the run has to do."""
    lengths = response_lengths(config, efficiency)
    return Workload(
        samples=config.samples_per_step,
        responses_per_prompt=config.rollout.responses_per_prompt if config.rollout.engine.prefix_caching else 1,
        prompt_tokens=(config.longest_sample - config.longest_response) * efficiency.prompt_share,
        response_tokens=lengths.mean,
        epochs=config.ppo.epochs,
        mini_batches=config.ppo.mini_batches,
        responses=lengths,
    )


def response_lengths(config: RunConfig, efficiency: Efficiency) -> Lengths:
    """Measured ones where the factors have them, else what the limits leave open."""
    limit, share = config.longest_response, efficiency.response_share
    shortest = min(config.rollout.min_response_tokens, limit) if config.environment is None else 1
    if shortest == limit:
        return fixed(limit)
    if efficiency.response_quantiles is None:
        return lognormal((share or HALF) * limit, efficiency.response_spread, max(shortest, 1), limit)
    measured = {part: tokens * limit for part, tokens in efficiency.response_quantiles.items()}
    lengths = from_quantiles(measured, max(shortest, 1), limit)
    return lengths if share is None else moved_to_mean(lengths, share * limit, limit)


def lengths_from(config: RunConfig, efficiency: Efficiency) -> str:
    """Where the response lengths come from, in words."""
    if config.environment is None and config.rollout.min_response_tokens >= config.longest_response:
        return "rollout.min_response_tokens and max_response_tokens say so"
    if efficiency.response_quantiles is not None:
        return "from the quantiles of the efficiency file"
    share, spread = efficiency.response_share or HALF, efficiency.response_spread
    return f"assumed: a mean of {share:.0%} of the limit (response_share) with a spread of {spread:g} (response_spread)"


def _rounds(config: RunConfig, work: Workload) -> list[Workload]:
    """What is generated one after the other: the greedy responses that ReMax compares with come first."""
    greedy = replace(work, samples=config.rollout.prompts_per_step, responses_per_prompt=1)
    return [*([greedy] if config.ppo.advantage.type == "remax" else []), work]


def _kv_room(config: RunConfig, engines: EngineSize, pool: PoolConfig) -> float:
    if config.device == "cpu":
        return engines.kv_cache
    return engines.utilization * card_gib(pool) * GIB - engines.weights


def side_by_side(
    kinds: Collection[Kind],
    seconds: RoleSeconds,
    efficiency: Efficiency,
    response_tokens: float,
    streamed: float | None = None,
) -> StepTime:
    """The step's phases. Roles on one card take turns, roles on different cards work at the same time.

    Args:
        kinds: which roles share cards.
        efficiency: its `correction` stretches the phases.
        streamed: share of an engine's samples that is scored as soon as it is generated; None where scoring waits for
            the last (the configuration says so, or the engines give their memory to those who score).
    """
    correction = efficiency.correction
    generate, push = seconds.generate * correction.generate, seconds.push * correction.push
    busy: dict[Kind, float] = {}
    waits = {"score": 0.0, "update": 0.0}
    for kind in kinds:
        score = sum(seconds.score.get(role, 0.0) for role in kind)
        update = correction.update * sum(seconds.update.get(role, 0.0) for role in kind)
        hidden = 0.0
        if streamed is not None and ENGINES not in kind:
            hidden = (1 - streamed) * min(seconds.generate, score)
        waits["score"] = max(waits["score"], correction.score * (score - hidden))
        waits["update"] = max(waits["update"], update)
        busy[kind] = correction.score * score + update
        busy[kind] += generate if ENGINES in kind else 0.0
        busy[kind] += push if {"actor", ENGINES} & set(kind) else 0.0
    return StepTime({"generate": generate, **waits, "push": push}, busy, response_tokens)
