"""The predicted time of a PPO step: the seconds of each role, and the events of the step.

A RunConfig and its plan flow in, a StepTime flows out; the order is that of `orchestrator.ppo.step.train_step`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.config import Efficiency, PoolConfig
from cluster.estimate.engine_memory import EngineSize
from cluster.estimate.generation import Request, finished, generate_s, shares
from cluster.estimate.lengths import Lengths, at_another_limit, fixed, from_quantiles, lognormal, moved_to_mean
from cluster.estimate.memory import GIB, RoleSize
from cluster.estimate.roofline import Rates, Workload, card_rates, cpu_rates, push_s, score_s, update_s
from cluster.estimate.simulation import Course, Kind, ScoredPart, simulate, stretched
from cluster.placement.accelerators import ACCELERATORS, UNKNOWN
from cluster.placement.plan import Plan, engines_neighbours
from cluster.role_table import ACTOR, ENGINES, row_of, working_in
from orchestrator.config.run import RunConfig
from orchestrator.config.sampling import SamplingConfig
from orchestrator.planning.this_machine import memory_per_s, operations_per_s
from roles.scored_parts import ROWS_OF_A_RANK, scored_together

HALF = 0.5
"""Mean length of a response as a share of its limit, if nothing is known. An assumption."""


@dataclass(frozen=True, slots=True)
class RoleSeconds:
    """Seconds that each role works in a step, without waiting for other roles."""

    generate: float
    score: dict[str, float]
    """Role → seconds of its scoring passes."""
    update: dict[str, float]
    """Role → seconds of its update."""
    push: float
    engines: tuple[float, ...] = ()
    """Seconds of each engine, whose maximum is `generate`; empty: one engine with `generate` seconds."""
    parts: tuple[ScoredPart, ...] = ()
    """The parts that are scored together; empty: parts of equal size at equal intervals."""


@dataclass(frozen=True, slots=True)
class StepTime:
    """Predicted time of one step.

    Example: `StepTime({"update": 2.5}, {("actor",): 2.5}, 1024.0, course, unit="optimizer step", items="samples")`: an
    optimizer step of supervised fine-tuning takes 2.5 s, and its samples have 1024 tokens on average.
    """

    phases: dict[str, float]
    """Phase → seconds; of PPO: generate, score (what generation does not hide), update, push."""
    busy: dict[Kind, float]
    """Roles that share cards → seconds in which the cards work."""
    response_tokens: float
    """Mean length of a response (or of a whole sample) in tokens."""
    simulated: Course
    """The events of the step, before corrections stretch the phases."""
    prompt_tokens: float = 0.0
    """Mean length of a prompt in tokens."""
    lengths: Lengths | None = None
    """Distribution of the response lengths; None: not known."""
    lengths_from: str = ""
    """Source of the response lengths, in words."""
    unit: str = "step"
    """What takes these seconds, in words."""
    items: str = "responses"
    """What the lengths are those of, in words."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.phases.values())

    @property
    def course(self) -> Course:
        """The events of the step."""
        return stretched(self.simulated, self.phases)

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
    """The predicted step of a run's layout.

    Args:
        pools: the pool of each planned node.
        kinds: which roles share cards; without cards, all share the machine.
    """
    first = {role: made.of(role)[0] for role in made.roles}
    dtypes = {ENGINES: config.rollout.engine.dtype or config.dtype}
    rates = {
        role: rates_of(pools[slot.node], len(made.of(role)), dtypes.get(role, config.dtype), efficiency)
        for role, slot in first.items()
    }
    work = workload(config, efficiency)
    shared = ACTOR in engines_neighbours(config.placement)  # every rank sends to the engine on its own card
    room = kv_room(config, engines, pools[first[ENGINES].node])
    moved = engines.weights / rates[ENGINES].host if engines.sleep == 1 else 0.0  # to the host, and back for the push
    earlier = moved + _greedy_s(config, engines, work, rates[ENGINES], room)
    times = finished(engines, work, rates[ENGINES], room, config.seed)
    seconds = RoleSeconds(
        generate=earlier + max(max(own, default=0.0) for own in times),
        score={},
        update={
            role: update_s(size, work, rates[role], pretraining(config, efficiency) if role == ACTOR else None)
            for role, size in roles.items()
            if row_of(role).trained
        },
        push=moved
        + push_s(
            roles[ACTOR],
            rates[ACTOR],
            other_nodes=not shared and any(slot.node != first[ACTOR].node for slot in made.of(ENGINES)),
            cards=max(pools[first[ACTOR].node].gpus_per_node, 1),
        ),
        engines=tuple(earlier + max(own, default=0.0) for own in times),
        parts=tuple(_parts(config, made, roles, rates, work, shares(engines, work, config.seed), times, earlier)),
    )
    step = side_by_side(kinds or [tuple(made.roles)], seconds, efficiency, work.response_tokens)
    told = lengths_from(config, efficiency)
    return replace(step, prompt_tokens=work.prompt_tokens, lengths=work.lengths, lengths_from=told)


def _parts(
    config: RunConfig,
    made: Plan,
    roles: Mapping[str, RoleSize],
    rates: Mapping[str, Rates],
    work: Workload,
    requests: Sequence[Sequence[Request]],
    times: Sequence[Sequence[float]],
    earlier: float,
) -> Iterator[ScoredPart]:
    """The parts that are scored together: consecutive responses of an engine, or all responses if sleeping engines
    come first. Without GPUs all roles share the machine's cores."""
    passes = {ACTOR: int(config.actor.old_logprobs == "recompute") + int(config.reference.share_actor)}
    whole: dict[int, dict[str, float]] = {}
    last = earlier + max(max(own, default=0.0) for own in times)

    def part(rows: Sequence[Request], ready: float) -> ScoredPart:
        if len(rows) not in whole:
            some = replace(work, samples=len(rows))
            whole[len(rows)] = {role: passes.get(role, 1) * score_s(m, some, rates[role]) for role, m in roles.items()}
        tokens = work.prompt_tokens + sum(row.tokens for row in rows) / len(rows)
        return ScoredPart(ready, {role: s * tokens / work.tokens for role, s in whole[len(rows)].items()})

    if config.rollout.engine.sleep:
        yield part([row for asked in requests for row in asked], last)
        return
    every = [row for asked in requests for row in asked]
    ends = [end for own in times for end in own]
    least = ROWS_OF_A_RANK * max(len(made.of(role)) for role in roles if passes.get(role, 1))
    for rows in scored_together([len(own) for own in times], config.rollout.stream_samples, least):
        ready = earlier + max(ends[rows.start : rows.stop])
        yield part(every[rows.start : rows.stop], last if config.device == "cpu" else ready)


def card_gib(pool: PoolConfig) -> float:
    """Memory of one card of a pool, in GiB."""
    if pool.gpu_memory_gib is not None:
        return pool.gpu_memory_gib
    return ACCELERATORS[pool.accelerator or UNKNOWN].memory_gib


def rates_of(pool: PoolConfig, ranks: int, dtype: str, efficiency: Efficiency) -> Rates:
    """The rates of one of `ranks` processes on the cards of a pool, or on the cores of this machine."""
    if pool.gpus_per_node == 0:
        return cpu_rates(*machine_rates(dtype, efficiency), ranks, efficiency)
    return card_rates(ACCELERATORS[pool.accelerator or UNKNOWN], dtype, efficiency)


def machine_rates(dtype: str, efficiency: Efficiency) -> tuple[float, float]:
    """Operations per second, and bytes of memory traffic per second, of a machine without GPUs: those of the run that
    the factors were fitted to, or of this one now."""
    known, memory = efficiency.cpu.gflops.get(dtype), efficiency.cpu.memory_gb_s
    return 1e9 * known if known else operations_per_s(dtype), 1e9 * memory if memory else memory_per_s()


def workload(config: RunConfig, efficiency: Efficiency) -> Workload:
    """The work of one step of the run."""
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


def pretraining(config: RunConfig, efficiency: Efficiency) -> Workload | None:
    """The work of the pre-training loss in one step, if there is one; all of a row counts as its response."""
    ppo, ptx = config.ppo, config.ppo.ptx
    if ptx is None:
        return None
    lengths = lognormal(
        (efficiency.response_share or HALF) * ptx.max_tokens, efficiency.response_spread, 1, ptx.max_tokens
    )
    samples = ptx.sequences_per_mini_batch * ppo.mini_batches
    return Workload(samples, 1, 0.0, lengths.mean, ppo.epochs, ppo.mini_batches, responses=lengths)


def response_lengths(config: SamplingConfig, efficiency: Efficiency) -> Lengths:
    """The measured lengths if the efficiency factors have them, else lengths within the configured limits."""
    limit, share = config.longest_response, efficiency.response_share
    shortest = min(config.rollout.min_response_tokens, limit) if config.environment is None else 1
    if shortest == limit:
        return fixed(limit)
    old = efficiency.response_limit or limit
    if efficiency.response_quantiles is None:
        lengths = lognormal((share or HALF) * old, efficiency.response_spread, max(shortest, 1), old)
    else:
        measured = {part: tokens * old for part, tokens in efficiency.response_quantiles.items()}
        lengths = from_quantiles(measured, max(shortest, 1), old)
        lengths = lengths if share is None else moved_to_mean(lengths, share * old, old)
    return at_another_limit(lengths, limit) if old != limit else lengths


def lengths_from(config: SamplingConfig, efficiency: Efficiency) -> str:
    """The source of the response lengths, in words."""
    if config.environment is None and config.rollout.min_response_tokens >= config.longest_response:
        return "rollout.min_response_tokens and max_response_tokens say so"
    if efficiency.response_quantiles is not None:
        return "from the quantiles of the efficiency file"
    share, spread = efficiency.response_share or HALF, efficiency.response_spread
    return f"assumed: a mean of {share:.0%} of the limit (response_share) with a spread of {spread:g} (response_spread)"


def _greedy_s(config: RunConfig, engines: EngineSize, work: Workload, rates: Rates, room: float) -> float:
    """Seconds for the greedy responses that the advantages need as baselines; they are generated first."""
    if not config.ppo.advantage.needs_greedy:
        return 0.0
    greedy = replace(work, samples=config.rollout.prompts_per_step, responses_per_prompt=1)
    return generate_s(engines, greedy, rates, room, config.seed)


def kv_room(config: SamplingConfig, engines: EngineSize, pool: PoolConfig) -> float:
    """Bytes of KV cache on each of an engine's GPUs."""
    if config.device == "cpu":
        return engines.kv_cache
    return engines.kv_room(card_gib(pool) * GIB)


def side_by_side(
    kinds: Collection[Kind],
    seconds: RoleSeconds,
    efficiency: Efficiency,
    response_tokens: float,
    streamed: float | None = None,
) -> StepTime:
    """The predicted step. Roles on one card take turns, roles on different cards work at the same time.

    Args:
        kinds: which roles share cards.
        efficiency: its `correction` stretches the phases.
        streamed: share of all responses in one of equal parts; None if scoring waits for the last response.
    """
    correction = efficiency.correction.model_dump()
    engines, parts = seconds.engines or (seconds.generate,), seconds.parts or _even(seconds, streamed)
    course = simulate(kinds, engines, parts, seconds.update, seconds.push)
    score: dict[str, float] = {}
    for part in parts:
        for role, spent in part.seconds.items():
            score[role] = score.get(role, 0.0) + spent
    busy: dict[Kind, float] = {}
    for kind in kinds:
        busy[kind] = correction["score"] * sum(score.get(role, 0.0) for role in kind)
        busy[kind] += correction["update"] * sum(seconds.update.get(role, 0.0) for role in kind)
        busy[kind] += correction["generate"] * sum(engines) / len(engines) if ENGINES in kind else 0.0
        busy[kind] += correction["push"] * seconds.push if {*working_in("push")} & set(kind) else 0.0
    phases = {phase: correction[phase] * spent for phase, spent in course.phases.items()}
    return StepTime(phases, busy, response_tokens, course)


def _even(seconds: RoleSeconds, streamed: float | None) -> list[ScoredPart]:
    """Parts of equal size that are ready at equal intervals."""
    number = round(1 / streamed) if streamed else 1
    each = {role: spent / number for role, spent in seconds.score.items()}
    return [ScoredPart(seconds.generate * (place + 1) / number, each) for place in range(number)]
