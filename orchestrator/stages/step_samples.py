"""What became of the samples of a PPO step: its result flows in, every sample for the ledger flows out."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.config.run import RunConfig
from orchestrator.config.scores import MaskTruncated
from orchestrator.ppo.kept_batch import KeptBatch
from orchestrator.ppo.own_batch import OwnBatch
from orchestrator.ppo.stats import named_of
from orchestrator.ppo.step import StepResult
from orchestrator.run.sample_files import StepSamples, write_samples
from orchestrator.run.sample_ledger import NO_SPREAD, TRUNCATED, LedgerLine


def told_samples(config: RunConfig, step: int, result: StepResult) -> tuple[LedgerLine, Callable[[Path], None] | None]:
    """The step's line of the ledger, and what writes the file of its samples; None: it is not kept."""
    kept = config.report.samples
    if isinstance(result.batch, KeptBatch):
        facts = result.batch.rollouts
        cut = int((~facts.finished).sum()) if isinstance(config.ppo.truncated, MaskTruncated) else 0
        dropped = {TRUNCATED: cut} if cut else {}
        version = int(facts.versions.min())
        return LedgerLine(version, result.batch.drawn, len(facts), len(result.trained), dropped), None
    samples = step_samples(config, step, result.batch, result.trained)
    return samples.line, partial(write_samples, samples, kept) if kept else None


def step_samples(config: RunConfig, step: int, batch: OwnBatch, trained: Collection[int]) -> StepSamples:
    """The samples of a step."""
    made, actor, critic = batch.made, batch.experience.actor, batch.experience.critic
    scored, masks = made.scored, isinstance(config.ppo.truncated, MaskTruncated)
    cut = (~scored.rollouts.finished).nonzero().flatten().tolist() if masks else []

    def whole(batch: Tensor) -> Tensor:
        """The numbers of the batch's tokens among those of all samples, `[samples, time]`; others are 0."""
        found = torch.zeros_like(scored.old_logprobs)
        found[torch.tensor(made.rows), : batch.shape[1]] = batch
        return found

    return StepSamples(
        step=step,
        scored=scored,
        prompt_ids=made.drawn,
        seeds=made.seeds,
        trained={made.rows[row] for row in trained},
        dropped={**dict.fromkeys(cut, TRUNCATED), **dict.fromkeys(made.left_out, NO_SPREAD)},
        environment=config.environment is not None,
        named=named_of(scored),
        per_token={
            "rollout_logprobs": scored.rollouts.rollout_logprobs,
            "old_logprobs": scored.old_logprobs,
            "reference_logprobs": scored.reference_logprobs,
            "values": whole(critic.values),
            "returns": whole(critic.returns),
            "advantages": whole(actor.advantages),
        },
    )
