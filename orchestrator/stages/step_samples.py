"""What became of the samples of a PPO step: its result flows in, every sample for the ledger flows out."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.config.run import RunConfig
from orchestrator.config.scores import MaskTruncated
from orchestrator.ppo.stats import named_numbers
from orchestrator.ppo.step import StepResult
from orchestrator.run.sample_files import StepSamples
from orchestrator.run.sample_ledger import TRUNCATED
from roles.batch import Prompts


def step_samples(
    config: RunConfig, step: int, prompts: Prompts, drawn: Sequence[int], result: StepResult
) -> StepSamples:
    """The samples of a step. `drawn`: the rows of its prompts among the training prompts."""
    scored, actor, critic = result.scored, result.experience.actor, result.experience.critic
    masks = isinstance(config.ppo.truncated, MaskTruncated)
    cut = (~scored.rollouts.finished).nonzero().flatten().tolist() if masks else []
    return StepSamples(
        step=step,
        scored=scored,
        prompt_ids=drawn,
        seeds=prompts.seeds,
        trained=result.trained,
        dropped=dict.fromkeys(cut, TRUNCATED),
        environment=config.environment is not None,
        named=named_numbers(scored),
        per_token={
            "rollout_logprobs": scored.rollouts.rollout_logprobs,
            "old_logprobs": scored.old_logprobs,
            "reference_logprobs": scored.reference_logprobs,
            "values": critic.values,
            "returns": critic.returns,
            "advantages": actor.advantages,
        },
    )
