"""Do the engines sample from the weights that the trainer has? Sampled rows in, nothing out, or `WeightsDiffer`.

A digest proves what was sent; this is about what it does. vLLM says with which log-probability it sampled a token, and
the actor computes the same number: as long as the weights are the same, the two differ by rounding alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cluster.errors import ClusterError
from orchestrator.config.run import RunConfig
from orchestrator.errors import WeightsDiffer
from orchestrator.groups.scoring import Roles
from roles.actor import Actor
from roles.batch import Rollouts
from roles.config.rollout import RolloutConfig
from roles.config.section import Dtype
from roles.errors import RoleError
from roles.rollout import RolloutEngine
from roles.transfer.probe import worst

ROWS = 16
"""Samples that are enough where no whole batch is at hand."""

FIRST: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.2}
"""Limit, in nats per token, for weights that the engines have loaded from the folder themselves."""

LEAST: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.01}
"""A limit that grows from the first weights' gap is at least this."""

TOLERANCES: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.02}
"""How far a product with a tensor may be off, relative to its length."""

VOCABULARY = 2**19
"""More tokens than any model has."""


@dataclass(slots=True)
class Canary:
    """What the gap was with weights that were not pushed, and how large it may therefore be."""

    baseline: float | None = None
    """Largest mean gap with the weights that the engines loaded from the folder; None until they have sampled."""
    dtypes: str | None = None
    """Of actor and engines, with which the baseline was measured: with others it says nothing."""
    verified: int | None = None
    """Version that has passed; not saved: engines that start again must pass again."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {"baseline": self.baseline, "dtypes": self.dtypes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.baseline, self.dtypes = state["baseline"], state["dtypes"]

    def check(self, rollouts: Rollouts, logprobs: Tensor, version: int, config: RunConfig) -> None:
        """Raise `WeightsDiffer` if `logprobs` (the actor's, float32 `[batch, time]`) are too far from the engines'."""
        if not config.canary.enabled:
            return
        dtypes = f"{config.dtype} {config.rollout.engine.dtype or config.dtype}"
        if self.dtypes not in (None, dtypes):  # rollout.engine.dtype has changed since the checkpoint
            self.baseline = None
        self.dtypes = dtypes
        gap = float(unexplained_gap(rollouts, logprobs, config.rollout).double().mean())
        limit = self.limit(version, config)
        if not gap <= limit:
            was = "" if self.baseline is None or version == 0 else f"; it was {self.baseline:.2g} before any push"
            raise WeightsDiffer(
                f"the engines do not sample from the trainer's weights (version {version}): their log-probabilities "
                f"differ from the actor's by {gap:.2g} nats per token (mean over {int(rollouts.response_mask.sum())} "
                f"tokens), the limit is {limit:.2g}{was}. Nothing was trained on these samples. If this is rounding, "
                "raise canary.limit"
            )
        if version == 0:
            self.baseline = max(gap, self.baseline or 0.0)
        self.verified = version

    def limit(self, version: int, config: RunConfig) -> float:
        """Largest mean gap of `version`, in nats per token; logits divided by a low temperature differ by more."""
        if config.canary.limit is not None:
            return config.canary.limit
        coarse = "bfloat16" in (config.dtype, config.rollout.engine.dtype)
        dtype: Dtype = "bfloat16" if coarse else "float32"
        scale = 1 / min(config.rollout.temperature, 1.0)
        if version == 0 or self.baseline is None:
            return FIRST[dtype] * scale
        return max(LEAST[dtype] * scale, config.canary.growth * self.baseline)


def unexplained_gap(rollouts: Rollouts, logprobs: Tensor, how: RolloutConfig) -> Tensor:
    """|engine's - actor's| log-probability of every generated token, flat float32, less what truncated sampling adds.

    The engine's are those of the distribution that was sampled. Leaving tokens out raises the others by log(1/kept),
    which is at most log(1/top_p). Of V tokens top_k keeps k/V or more, and leaves out none that is likelier than the
    sampled one.
    """
    most = torch.full_like(logprobs, -math.log(how.top_p))
    if how.top_k:
        most -= (1 - VOCABULARY * logprobs.exp()).clamp(how.top_k / VOCABULARY, 1.0).log()
    difference, most = (rollouts.rollout_logprobs - logprobs)[rollouts.response_mask], most[rollouts.response_mask]
    return (difference - difference.clamp(min=0.0).minimum(most)).abs()


def culprits(roles: Roles, config: RunConfig) -> str:
    """Which tensors of the engines are not the actor's, in a sentence for each engine that can be asked."""
    deadline_s = roles.deadlines.push_s
    tolerance = TOLERANCES[config.rollout.engine.dtype or config.dtype]
    try:
        engines = roles.policy.engines.call(RolloutEngine.weight_products).result(deadline_s)
        actor = roles.actor.call(Actor.weight_products).result(deadline_s)[0]
    except (ClusterError, RoleError) as error:
        return f"Their tensors could not be compared: {error}"
    told = [f"Engine {index}: {worst(actor, engine, tolerance)}." for index, engine in enumerate(engines) if engine]
    return " ".join(told) or "Engines that are asleep or split over several workers cannot say which tensors differ."
