"""Checks that the engines sample from the trainer's weights. Sampled rows flow in, nothing flows out, or WeightsDiffer.

A digest proves which weights were sent; this check proves which were used. vLLM reports the log-probability with which
it sampled a token, and the actor computes the same number: if the weights are the same, the two differ only by
rounding.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cluster.errors import ClusterError
from orchestrator.config.run import RunConfig
from orchestrator.errors import WeightsDiffer
from orchestrator.groups.scoring import Roles, finish_scoring, start_scoring
from orchestrator.groups.spread import spread
from roles.actor import Actor
from roles.batch import Prompts, Rollouts, Scored, Sequences
from roles.config.rollout import RolloutConfig
from roles.config.section import Dtype
from roles.errors import RoleError
from roles.rollout import RolloutEngine
from roles.transfer.probe import worst

ROWS = 16
"""Number of samples to check where the actor's log-probabilities of the whole batch are not there."""

FIRST: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.2}
"""Limit, in nats per token, for weights that the engines have loaded from the folder themselves."""

LEAST: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.01}
"""Least value of a limit that is derived from the first weights' gap."""

TOLERANCES: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.02}
"""Largest relative error of a product with a tensor."""

FEW_TOKENS = 256
"""With fewer, an engine's mean is no measure of it: in bfloat16 a few tokens are far off by rounding."""

VOCABULARY = 2**19
"""More tokens than any vocabulary has."""


@dataclass(slots=True)
class Canary:
    """The gap with weights that were not pushed, and the largest gap that is accepted after a push."""

    baseline: float | None = None
    """Largest mean gap with the weights that the engines loaded from the folder; None until they have sampled."""
    dtypes: str | None = None
    """Dtypes of actor and engines with which the baseline was measured; it does not hold for others."""
    verified: int | None = None
    """Version that has passed the check. Not saved: engines that start again must pass again."""

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        return {"baseline": self.baseline, "dtypes": self.dtypes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of `state_dict`."""
        self.baseline, self.dtypes = state["baseline"], state["dtypes"]

    def check(self, seen: SeenSamples, version: int, config: RunConfig) -> None:
        """Raise `WeightsDiffer` if the actor's log-probabilities are too far from those of an engine: the others do not
        make up for it."""
        if not config.canary.enabled:
            return
        gaps, limit = seen.by_engine(config.rollout), self.limit(version, config)
        together = EngineGap.of(gaps.values())
        wrong = [engine for engine, own in gaps.items() if own.mean(FEW_TOKENS) > limit]
        if wrong or not together.mean() <= limit:
            some = len(gaps) > len(wrong) > 0
            own = EngineGap.of(gaps[engine] for engine in wrong) if some else together
            names = f"engine{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong))}" if some else "the engines"
            who = f"{names} {'does' if some and len(wrong) == 1 else 'do'}"
            was = "" if self.baseline is None or version == 0 else f"; it was {self.baseline:.2g} before any push"
            raise WeightsDiffer(
                f"{who} not sample from the trainer's weights (version {version}): the log-probabilities differ from "
                f"the actor's by {own.mean():.2g} nats per token (mean over {own.tokens} tokens), the limit is "
                f"{limit:.2g}{was}. Nothing was trained on these samples. If this is rounding, raise canary.limit"
            )
        if version == 0:
            self.baseline = max(together.mean(), self.baseline or 0.0)
        self.verified = version

    def wrong_engines(self, seen: SeenRows, version: int, config: RunConfig) -> set[int]:
        """Of the engines that made the rows, those whose log-probabilities are too far from the actor's; none if it
        is all of them, since then the weights that were sent are wrong, and no engine is."""
        if not config.canary.enabled or len(set(seen.made_by)) == 1:
            return set()
        gaps, limit = seen.by_engine(config.rollout), self.limit(version, config)
        wrong = {engine for engine, own in gaps.items() if own.mean(FEW_TOKENS) > limit}
        return wrong if len(wrong) < len(gaps) else set()

    def limit(self, version: int, config: RunConfig) -> float:
        """Largest accepted mean gap of `version`, in nats per token; larger for temperatures below 1."""
        dtypes = f"{config.dtype} {config.rollout.engine.dtype or config.dtype}"
        if self.dtypes not in (None, dtypes):  # rollout.engine.dtype has changed since the checkpoint
            self.baseline = None
        self.dtypes = dtypes
        if config.canary.limit is not None:
            return config.canary.limit
        coarse = "bfloat16" in (config.dtype, config.rollout.engine.dtype)
        dtype: Dtype = "bfloat16" if coarse else "float32"
        scale = 1 / min(config.rollout.temperature, 1.0)
        if version == 0 or self.baseline is None:
            return FIRST[dtype] * scale
        return max(LEAST[dtype] * scale, config.canary.growth * self.baseline)


def unexplained_gap(rollouts: Rollouts, logprobs: Tensor, how: RolloutConfig) -> Tensor:
    """|engine's - actor's| log-probability of every generated token, flat float32, minus what truncated sampling adds.

    The engine's numbers are those of the distribution that was sampled. Leaving tokens out raises the others by
    log(1/kept), which is at most log(1/top_p). Of V tokens top_k keeps k/V or more of the probability, min_p 1/V;
    neither leaves out one that is likelier than the sampled one, and min_p none that is likelier than itself.
    """
    difference = (rollouts.rollout_logprobs - logprobs)[rollouts.response_mask]
    if how.top_p == 1 and not how.top_k and not how.min_p:
        return difference.abs()
    said = logprobs[rollouts.response_mask]
    most = torch.full_like(said, -math.log(how.top_p))
    if how.top_k:
        most -= (1 - VOCABULARY * said.exp()).clamp(how.top_k / VOCABULARY, 1.0).log()
    if how.min_p:
        most -= (1 - VOCABULARY * said.exp().clamp(max=how.min_p)).clamp(1 / VOCABULARY, 1.0).log()
    return (difference - difference.clamp(min=0.0).minimum(most)).abs()


class EngineGap(NamedTuple):
    """How far an engine's log-probabilities are from the actor's."""

    total: float
    """`unexplained_gap`, summed over its tokens, nats."""
    tokens: int

    @classmethod
    def of(cls, gaps: Iterable[EngineGap]) -> EngineGap:
        """Of several engines together."""
        totals, tokens = zip(*gaps, strict=True)
        return cls(sum(totals), sum(tokens))

    def mean(self, least: int = 1) -> float:
        """A token's; of fewer tokens than `least` their sum over `least`: a single one may be far off by rounding."""
        return self.total / max(self.tokens, least)


class SeenSamples(Protocol):
    """Samples that the actor has looked at."""

    def by_engine(self, how: RolloutConfig) -> dict[int, EngineGap]:
        """The gap of each engine that has generated a token."""

    @property
    def gaps(self) -> Tensor | None:
        """Differences of the engines' log-probabilities from the actor's, flat; None if there are none."""


@dataclass(frozen=True, slots=True)
class SeenRows:
    """Samples, and what the actor says of them."""

    rollouts: Rollouts
    logprobs: Tensor
    """float32 `[batch, time]`: the actor's log-probabilities."""
    made_by: Sequence[int]
    """The engine of each sample; empty: they are looked at together."""

    def by_engine(self, how: RolloutConfig) -> dict[int, EngineGap]:
        """The gap of each engine that has generated a token."""
        engines, maker = torch.tensor(self.made_by or [0] * len(self.rollouts)).unique(return_inverse=True)
        tokens = maker.repeat_interleave(self.rollouts.response_mask.sum(1))
        gaps = unexplained_gap(self.rollouts, self.logprobs, how).double()
        sums, counts = (tokens.bincount(weights, minlength=len(engines)).tolist() for weights in (gaps, None))
        return {engine: EngineGap(*own) for engine, *own in zip(engines.tolist(), sums, counts, strict=True)}

    @property
    def gaps(self) -> Tensor | None:
        """float64, flat: differences of the engines' log-probabilities from the actor's; None if the engines' own stand
        for the actor's."""
        if self.logprobs is self.rollouts.rollout_logprobs:
            return None
        return (self.rollouts.rollout_logprobs - self.logprobs)[self.rollouts.response_mask].abs().double()


def seen_by_actor(roles: Roles, scored: Scored, config: RunConfig) -> SeenRows:
    """What the engines have answered just now, all of it; or, where the actor does not compute the log-probabilities of
    all samples, `ROWS` of them, some of every engine."""
    makers = roles.policy.made_by
    if roles.recomputes:
        return SeenRows(scored.rollouts, scored.old_logprobs, makers)
    if not config.canary.enabled:
        return SeenRows(scored.rollouts, scored.rollouts.rollout_logprobs, makers)
    return seen_of_each(roles, scored.rollouts)


def seen_of_each(roles: Roles, rollouts: Rollouts) -> SeenRows:
    """`ROWS` of what the engines have answered just now, some of every engine."""
    rows = some_of_each(roles.policy.made_by)
    return seen_rows(roles, rollouts.select(rows), rows)


def some_of_each(made_by: Sequence[int]) -> list[int]:
    """`ROWS` rows in rising order, some of every engine. `made_by`: the engine of each row."""
    each, taken, rows = max(ROWS // len(set(made_by)), 1), Counter[int](), list[int]()
    for row, engine in enumerate(made_by):
        taken[engine] += 1
        if taken[engine] <= each:
            rows.append(row)
    return rows


def seen_rows(roles: Roles, few: Rollouts, rows: Sequence[int]) -> SeenRows:
    """A few samples and what the actor says of them. `rows`: which of what the engines have answered just now."""
    return SeenRows(few, actors_logprobs(roles, few), [roles.policy.made_by[row] for row in rows])


def actors_logprobs(roles: Roles, few: Rollouts) -> Tensor:
    """float32 `[batch, time]`: the actor's log-probabilities of a few samples."""
    asked = spread(roles.actor, Actor.canary_logprobs, Sequences.of(few))
    return asked.tokens(few.response_mask, roles.deadlines.score_s)


def with_right_weights(
    roles: Roles, prompts: Prompts, scored: Scored, canary: Canary, version: int, config: RunConfig
) -> tuple[Scored, SeenRows]:
    """The batch, and what the actor says of it; in place of the rows of engines with wrong weights, which start again,
    what others answer.

    Unchanged where that is not possible: then `Canary.check` ends the run.
    """
    policy, seen = roles.policy, seen_by_actor(roles, scored, config)
    wrong = canary.wrong_engines(seen, version, config)
    if not wrong or policy.sleeps or config.ppo.advantage.needs_greedy:
        return scored, seen
    rows = [row for row, engine in enumerate(policy.made_by) if engine in wrong]
    try:
        policy.fleet.replace(wrong, "samples from other weights than the actor's", len(rows))
    except ClusterError:
        return scored, seen
    rollouts = policy.generate(prompts.select(rows), version=version)
    again = finish_scoring([start_scoring(roles, (0, 0), rollouts)], config.deadlines.score_s, policy.recovery)
    place = {row: len(scored) + number for number, row in enumerate(rows)}
    mended = Scored.concatenate([scored, again]).select([place.get(row, row) for row in range(len(scored))])
    if roles.recomputes:
        instead = dict(zip(rows, policy.made_by, strict=True))
        makers = [instead.get(row, engine) for row, engine in enumerate(seen.made_by)]
        return mended, SeenRows(mended.rollouts, mended.old_logprobs, makers)
    return mended, seen_by_actor(roles, again, config)


def culprits(roles: Roles, config: RunConfig) -> str:
    """The tensors of the engines that differ from the actor's, one sentence for each engine that answers."""
    deadline_s = roles.deadlines.push_s
    tolerance = TOLERANCES[config.rollout.engine.dtype or config.dtype]
    try:
        engines = roles.policy.engines.call(RolloutEngine.weight_products).result(deadline_s)
        actor = roles.actor.call(Actor.weight_products).result(deadline_s)[0]
    except (ClusterError, RoleError) as error:
        return f"Their tensors could not be compared: {error}"
    told = [f"Engine {index}: {worst(actor, engine, tolerance)}." for index, engine in enumerate(engines) if engine]
    return " ".join(told) or "Engines that are asleep or split over several workers cannot say which tensors differ."
