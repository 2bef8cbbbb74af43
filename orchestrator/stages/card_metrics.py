"""Metrics of the GPUs in a step, by phase and role: memory, and the used share of their arithmetic. Pure.

The ranks' reports and the step's clock flow in, metrics flow out; none without a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from cluster.estimate.memory import GIB, RoleSize
from cluster.estimate.roofline import operations
from cluster.placement.accelerators import card_called
from cluster.ranks.usage import RankUsage
from cluster.role_table import ACTOR, ENGINES, base_role, row_of, working_in
from orchestrator.config.run import RunConfig
from orchestrator.planning.layout_planner import role_sizes
from orchestrator.ppo.stats import TokenCounts
from orchestrator.run.phase_clock import Clock
from orchestrator.sizes.model_sources import UnknownModel

if TYPE_CHECKING:
    from roles.batch import TokenRows

CARD_PHASES = ("generate", "score", "update", "push")


@dataclass(frozen=True, slots=True)
class SampleWork:
    """Samples that go through models: `SampleWork(64, tokens=300.0, scored=120.0)`."""

    samples: int
    tokens: float
    """Mean tokens of a sample, prompt included."""
    scored: float
    """Mean number of tokens of a sample that have logits."""

    @classmethod
    def of(cls, tokens: TokenCounts) -> Self:
        """That of rows with so many tokens."""
        samples = len(tokens.lengths)
        return cls(samples, float(tokens.lengths.float().mean()), float(tokens.generated.sum()) / samples)


@dataclass(frozen=True, slots=True)
class StepWork:
    """The work of the roles in a step, from which the used share of a card's arithmetic is computed.

    MFU as in Chowdhery et al. (arXiv 2204.02311, appendix B): what checkpointing computes again does not count.
    """

    sizes: Mapping[str, RoleSize]
    """Role → its model and how it is trained."""
    scoring: SampleWork
    """All samples that were scored."""
    training: SampleWork
    """The batch; with dynamic sampling only some of those."""
    epochs: int
    pretraining: SampleWork | None = None
    """All rows of the actor's pre-training loss, each once; None without one."""

    def operations(self, role: str, method: str) -> float:
        """Operations of `method` over all its samples, on all ranks of `role` together.

        An update counts as a forward pass, one for the activations' gradients, and one for those of trained weights.
        """
        size, work = self.sizes[role], self.training if method == "update" else self.scoring
        once = _forward(size, work)
        if method != "update":
            return once
        beside = _forward(size, self.pretraining) if self.pretraining and role == ACTOR else 0.0
        return (once * self.epochs + beside) * (2 + size.learning / size.model.parameters)


def _forward(size: RoleSize, work: SampleWork) -> float:
    return work.samples * operations(size.model, work.tokens, work.scored if size.model.vocabulary else 0.0)


def step_work(config: RunConfig, sampled: TokenCounts, batch: TokenCounts, texts: TokenRows | None) -> StepWork | None:
    """The work of the roles in a step that trains on `batch`, of all that was `sampled`, and on the `texts` of a
    pre-training loss; None without GPUs, or if a model's size is not known."""
    if config.device == "cpu":
        return None
    with suppress(UnknownModel):
        read = TokenCounts(texts.lengths, texts.response_mask.sum(1)) if texts is not None else None
        beside = SampleWork.of(read) if read is not None else None
        return StepWork(role_sizes(config), SampleWork.of(sampled), SampleWork.of(batch), config.ppo.epochs, beside)
    return None


def card_metrics(ranks: Sequence[tuple[str, RankUsage]], clock: Clock, work: StepWork | None) -> dict[str, float]:
    """`memory/gpu_…`, `gpu/utilization` and `mfu/…` of a step.

    Args:
        ranks: (role, report of one of its ranks on the step).
        work: None if the models' sizes are not known: then there is no `mfu/…`.
    """
    cards = [(role, usage.cards) for role, usage in ranks if usage.cards is not None]
    if not cards:
        return {}
    metrics: dict[str, float] = {}
    # An evaluation after the step before is told of with this one, and its work is not in `work`.
    samples = [sample for _, use in cards for sample in use.samples if sample.at >= clock.began]
    for phase in CARD_PHASES:
        spans = [span for name, span in clock.spans if name == phase]
        held = [s.used_bytes for s in samples if any(first <= s.at <= last for first, last in spans)]
        if held:
            metrics[f"memory/gpu_{phase}_gib"] = max(held) / GIB
    for kind in ("rank", "engine"):
        uses = [use for role, use in cards if (role == ENGINES) == (kind == "engine")]
        if uses:
            metrics[f"memory/gpu_{kind}_allocated_gib"] = max(use.allocated_bytes for use in uses) / GIB
            metrics[f"memory/gpu_{kind}_reserved_gib"] = max(use.reserved_bytes for use in uses) / GIB
    busy = [sample.busy for sample in samples if sample.busy is not None]
    if busy:
        metrics["gpu/utilization"] = sum(busy) / len(busy)
    return metrics | (_model_flops_utilization(ranks, work, clock.began) if work else {})


def _model_flops_utilization(ranks: Sequence[tuple[str, RankUsage]], work: StepWork, began: float) -> dict[str, float]:
    done: dict[str, float] = {}
    could: dict[str, float] = {}
    scoring = {row_of(role).scored_by for role in working_in("score")}  # one forward pass over the samples each
    for role in dict.fromkeys(role for role, _ in ranks if role in work.sizes):
        own = [(usage, usage.cards) for name, usage in ranks if name == role and usage.cards is not None]
        card = card_called(own[0][1].name) if own else None
        if card is None:
            continue
        dtype = "float32" if work.sizes[role].number_bytes == 4 else "bfloat16"
        for phase, methods in (("score", scoring), ("update", {"update"})):
            if phase not in row_of(role).phases:
                continue
            calls = [call for usage, _ in own for call in usage.busy if call[2] in methods and call[0] >= began]
            key = f"mfu/{base_role(role)}_{phase}"
            for method in {method for _, _, method, _ in calls}:
                done[key] = done.get(key, 0.0) + work.operations(role, method)
            seconds = sum(last - first for first, last, *_ in calls)
            could[key] = could.get(key, 0.0) + seconds * card.operations_per_s(dtype)
    return {key: done[key] / could[key] for key in done if could[key]}
