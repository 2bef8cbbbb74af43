"""The numbers that describe a batch of experience in the metrics. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.metrics import LENGTH_QUANTILES
from roles.batch import Scored
from roles.losses.kl_estimators import k1


@dataclass(frozen=True, slots=True)
class ExperienceStats:
    """What a batch looked like before the update. Every standard deviation is the biased one (divided by n).

    *Trained* responses are all but those that `truncated: {type: mask}` leaves out; where none is left, their numbers
    are 0.
    """

    score_mean: float
    """Of the reward model's raw scores, all responses; a truncation penalty is not in it."""
    score_std: float
    score_disagreement: float
    """Of the members of an ensemble: their standard deviation, mean over the responses."""
    reward_mean: float
    """Rewards summed over a response (score or its replacement, minus the KL penalty; before whitening), mean over the
    trained responses."""
    kl: float
    """k1 in nats, summed over a response, mean over all responses."""
    kl_per_token: float
    """k1 in nats, mean over all generated tokens."""
    advantage_mean: float
    """Before whitening, over the trained tokens."""
    advantage_std: float
    explained_variance: float
    """1 - Var(return - value) / Var(return) over the trained tokens, before the update; 0 where returns do not vary."""
    response_length_mean: float
    """Generated tokens a response, EOS included."""
    response_length_quantiles: tuple[float, ...]
    """The same: those that LENGTH_QUANTILES of the responses do not exceed."""
    prompt_length_mean: float
    """Tokens of a sample that were not generated."""
    turns_mean: float
    """Of the policy in a response: runs of generated tokens."""
    truncated_fraction: float
    """Responses that the length limit cut."""
    logprob_gap_mean: float
    """|rollout_logprobs - old_logprobs|, mean over the generated tokens: how far vLLM and the trainer disagree."""
    logprob_gap_max: float

    def metrics(self) -> dict[str, float]:
        """By their names in `metrics.jsonl`."""
        return {
            "score/mean": self.score_mean,
            "score/std": self.score_std,
            **({"score/disagreement": self.score_disagreement} if self.score_disagreement else {}),
            "reward/mean": self.reward_mean,
            "objective/kl": self.kl,
            "objective/kl_per_token": self.kl_per_token,
            "advantage/mean": self.advantage_mean,
            "advantage/std": self.advantage_std,
            "value/explained_variance": self.explained_variance,
            "response/length_mean": self.response_length_mean,
            **dict(zip(LENGTH_QUANTILES, self.response_length_quantiles, strict=True)),
            "prompt/length_mean": self.prompt_length_mean,
            "response/turns_mean": self.turns_mean,
            "response/truncated_fraction": self.truncated_fraction,
            "engine/logprob_gap_mean": self.logprob_gap_mean,
            "engine/logprob_gap_max": self.logprob_gap_max,
        }


def experience_stats(
    scored: Scored, trained: Tensor, rewards: Tensor, advantages: Tensor, returns: Tensor
) -> ExperienceStats:
    generated = scored.response_mask
    kl = k1(scored.old_logprobs, scored.reference_logprobs)[generated].double()
    gap = (scored.rollout_logprobs - scored.old_logprobs)[generated].abs().double()
    advantage = advantages[trained].double()
    target = returns[trained].double()
    scores = scored.scores.double()
    tokens = generated.sum(1).double()
    quantiles = torch.quantile(tokens, torch.tensor(list(LENGTH_QUANTILES.values()), dtype=torch.double))
    return ExperienceStats(
        score_mean=float(scores.mean()),
        score_std=float(scores.std(correction=0)),
        score_disagreement=float(scored.disagreement.mean()),
        reward_mean=mean(rewards.double().sum(1)[trained.any(1)]),
        kl=float(kl.sum()) / len(scored),
        kl_per_token=float(kl.mean()),
        advantage_mean=mean(advantage),
        advantage_std=mean((advantage - advantage.mean()).square()) ** 0.5,
        explained_variance=explained_variance(scored.values[trained].double(), target),
        response_length_mean=float(generated.sum()) / len(scored),
        response_length_quantiles=tuple(quantiles.tolist()),
        prompt_length_mean=float(scored.lengths.sum() - generated.sum()) / len(scored),
        turns_mean=float((generated[:, 1:] & ~generated[:, :-1]).sum()) / len(scored),
        truncated_fraction=float((~scored.finished).double().mean()),
        logprob_gap_mean=float(gap.mean()),
        logprob_gap_max=float(gap.max()),
    )


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) of two flat tensors; 0 where the returns do not vary."""
    if not len(returns):
        return 0.0
    total = float(returns.var(correction=0))
    return 1.0 - float((returns - values).var(correction=0)) / total if total > 0 else 0.0


def mean(x: Tensor) -> float:
    return float(x.mean()) if x.numel() else 0.0
