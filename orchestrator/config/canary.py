"""Whether the engines sample from the trainer's weights: the section `canary`."""

from __future__ import annotations

from pydantic import Field

from roles.config.section import Section


class CanaryConfig(Section):
    """Before anything is trained on a batch, the engines' log-probabilities of the sampled tokens are compared with the
    actor's. If they differ by too much, the run ends with exit code 1 and a checkpoint. With `rollout.top_k` only large
    differences can be seen."""

    enabled: bool = True
    """false: nothing is compared (the metric `engine/logprob_gap_mean` is still reported, unless `actor.old_logprobs`
    leaves the actor's log-probabilities out)."""
    limit: float | None = Field(default=None, gt=0)
    """Largest mean difference, in nats per token. null, in float32: 1e-4. null, if actor or engines use bfloat16: 0.2
    for the weights that the engines load from the folder, then `growth` times the difference measured for those, at
    least 0.01. Both are divided by a temperature below 1."""
    growth: float = Field(default=5.0, gt=1)
    """In bfloat16: largest difference after a push of weights, as a multiple of that before the first push."""
