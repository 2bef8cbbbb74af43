"""What became of the samples of a PPO step: its result flows in, every sample for the ledger flows out."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.config.run import RunConfig
from orchestrator.config.scores import MaskTruncated
from orchestrator.ppo.stats import named_numbers
from orchestrator.ppo.step import StepResult
from orchestrator.run.sample_files import StepSamples
from orchestrator.run.sample_ledger import NO_SPREAD, TRUNCATED


def step_samples(config: RunConfig, step: int, result: StepResult) -> StepSamples:
    """The samples of a step."""
    made, actor, critic = result.generated, result.experience.actor, result.experience.critic
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
        trained={made.rows[row] for row in result.trained},
        dropped={**dict.fromkeys(cut, TRUNCATED), **dict.fromkeys(made.left_out, NO_SPREAD)},
        environment=config.environment is not None,
        named=named_numbers(scored),
        per_token={
            "rollout_logprobs": scored.rollouts.rollout_logprobs,
            "old_logprobs": scored.old_logprobs,
            "reference_logprobs": scored.reference_logprobs,
            "values": whole(critic.values),
            "returns": whole(critic.returns),
            "advantages": whole(actor.advantages),
        },
    )
