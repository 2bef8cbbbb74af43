"""Scored rollouts → rewards → advantages → Experience, and its mini-batches. Runs on the driver, on the whole batch.

`orchestrator.ppo.step.train_step` calls `to_experience` once a step and `mini_batches` once for each trained group.
Pure apart from reading the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from orchestrator.config.ppo import BootstrapTruncated, MaskTruncated, PpoConfig
from orchestrator.errors import NotFinite
from orchestrator.ppo.advantages import CRITIC_FREE, WITH_CRITIC, whiten
from orchestrator.ppo.scores import RunningScale
from orchestrator.report.metrics import LENGTH_QUANTILES
from roles.batch import Experience, Scored
from roles.losses.policy import KL_ESTIMATORS, k1
from roles.packing import balance


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


def to_experience(
    scored: Scored,
    kl_coefficient: float,
    ppo: PpoConfig,
    *,
    responses_per_prompt: int = 1,
    scores: Tensor | None = None,
    baselines: Tensor | None = None,
    value_scale: RunningScale | None = None,
) -> tuple[Experience, ExperienceStats]:
    """The whole batch of a PPO step, ready to train on; the responses to a prompt are neighbours.

    Truncated responses (`finished` False), by `ppo.truncated.type`: `score` and `penalty` treat them like any other
    (their score is `orchestrator.ppo.scores`' business); `mask` takes them out of training, whitening and the counts of
    both; `bootstrap` lets the critic's value of the cut state follow the last token. There is no value of the state
    after the last token, so that of the state before it (`values` at its position) stands in.

    Args:
        scores: what counts in place of the raw ones (`orchestrator.ppo.scores`), float `[batch]`. A response's rewards
        sum to it (less the KL penalty): what its turns were paid is part of it. baselines: likewise, of the greedy
        response to each row's prompt; of `remax`, float `[batch]`. value_scale: in whose units the critic's numbers
        are; takes in this batch's returns. None: plain ones. The experience has `values` as the critic gave them, and
        `returns` in the new units.

    Raises:
        NotFinite: a score, value or log-probability is not finite.
    """
    _check_finite(scored)
    generated, critics = scored.response_mask, scored.values
    if value_scale is not None:
        scored = replace(scored, values=value_scale.restored(critics))
    trained, bootstrap = _truncation(scored, ppo)
    scores = scored.scores if scores is None else scores
    penalty = torch.zeros_like(scored.old_logprobs)
    if ppo.kl.where == "reward":
        estimate = KL_ESTIMATORS[ppo.kl.estimator]
        penalty = kl_coefficient * estimate(scored.old_logprobs, scored.reference_logprobs)
    # What an environment paid stays with its turn; the last token gets the rest of the score.
    rewards = shape_rewards(scores - scored.turn_rewards.sum(1), penalty, generated) + scored.turn_rewards
    shaped = whiten(rewards, trained, shift_mean=False) if ppo.whiten_rewards else rewards
    estimator, options = ppo.advantage.type, ppo.advantage.model_dump(exclude={"type"})
    if ppo.uses_critic:
        advantages, returns = WITH_CRITIC[estimator](shaped, scored.values, trained, bootstrap=bootstrap, **options)
    else:
        groups = torch.arange(len(scored)) // responses_per_prompt
        compared = groups if baselines is None else baselines
        advantages = returns = CRITIC_FREE[estimator](shaped, trained, compared, **options)
    stats = _stats(scored, trained, rewards, advantages, returns)
    if value_scale is not None:
        value_scale.update(returns[trained])
        returns = value_scale.normalised(returns) * trained
    experience = Experience(
        token_ids=scored.token_ids,
        lengths=scored.lengths,
        response_mask=trained,
        rows=torch.arange(len(scored)),
        old_logprobs=scored.old_logprobs * trained,
        rollout_logprobs=scored.rollout_logprobs * trained,
        reference_logprobs=scored.reference_logprobs * trained,
        values=critics * trained,
        advantages=whiten(advantages, trained) if ppo.whitens else advantages,
        returns=returns,
    )
    return experience, stats


def shape_rewards(scores: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """The KL penalty off every generated token, and the score on the last one.

    Ziegler et al., arXiv 1909.08593, equation 2; the last token is EOS, or where the length limit cut (trl#3750).

    Args:
        scores: float `[batch]`.
        penalty: float `[batch, time]`, such as β·(log π - log π_ref).
        mask: bool `[batch, time]`, True on generated tokens; each row has at least one.

    Returns:
        `[batch, time]`, 0 where the mask is False.
    """
    rewards = torch.where(mask, -penalty, 0.0)
    rows = torch.arange(len(mask), device=mask.device)
    rewards[rows, last_generated(mask)] += scores
    return rewards


def last_generated(mask: Tensor) -> Tensor:
    """Column of the last True of each row of a bool mask `[batch, time]`, int64 `[batch]`."""
    empty = (~mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"rows {empty} have no generated token to put a score on; the engine must make at least one")
    columns = torch.arange(mask.shape[1], device=mask.device)
    return torch.where(mask, columns, -1).amax(1)


def mini_batches(
    experience: Experience, *, epochs: int, mini_batches: int, seed: int, ranks: int
) -> list[list[Experience]]:
    """What each rank trains on: `[rank][optimizer step]`, `epochs * mini_batches` steps.

    Every epoch is a fresh permutation of the whole batch, cut into equal mini-batches; each of those is shared out over
    the ranks by token counts. Which rows make an optimizer step depends on the seed, never on the number of ranks.

    Raises:
        ValueError: the rows do not divide into mini-batches, or a mini-batch has fewer rows than there are ranks.
    """
    rows = len(experience)
    if rows % mini_batches:
        raise ValueError(f"mini_batches={mini_batches} does not divide the {rows} samples of the batch; use a divisor")
    size = rows // mini_batches
    if size < ranks:
        raise ValueError(
            f"a mini-batch of {size} samples cannot be shared out over {ranks} ranks; "
            f"use at most {rows // ranks} mini-batches, or more samples a step"
        )
    generator = torch.Generator().manual_seed(seed)
    lengths = experience.lengths.tolist()
    shards: list[list[Experience]] = [[] for _ in range(ranks)]
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator).tolist()
        for first in range(0, rows, size):
            step = sorted(order[first : first + size])
            for rank, part in enumerate(balance([lengths[row] for row in step], ranks)):
                shards[rank].append(experience.select([step[place] for place in part]))
    return shards


def _truncation(scored: Scored, ppo: PpoConfig) -> tuple[Tensor, Tensor | None]:
    """Trained tokens `[batch, time]`, value after the last token `[batch]` (None: 0)."""
    match ppo.truncated:
        case MaskTruncated():
            return scored.response_mask & scored.finished.unsqueeze(1), None
        case BootstrapTruncated():
            last = last_generated(scored.response_mask).unsqueeze(1)
            return scored.response_mask, torch.where(scored.finished, 0.0, scored.values.gather(1, last).squeeze(1))
        case _:
            return scored.response_mask, None


MADE_BY = {
    "scores": "reward",
    "values": "critic",
    "old_logprobs": "actor",
    "reference_logprobs": "reference",
    "rollout_logprobs": "rollout",
}
"""What must be finite, and the role that it comes from."""


def _check_finite(scored: Scored) -> None:
    for name, role in MADE_BY.items():
        tensor = getattr(scored, name)
        if not bool(tensor.isfinite().all()):
            bad = (~tensor.isfinite()).nonzero()[:, 0].unique().tolist()
            mend = (
                "look at the responses: it was not trained"
                if role in ("reward", "reference")
                else "it has diverged; lower its learning rate, or resume from an earlier checkpoint"
            )
            raise NotFinite(
                role,
                f"the {role}'s {name} are not finite in rows {bad[:8]} of the batch ({len(bad)} of {len(scored)}; the "
                f"first has the prompt {scored.prompts[bad[0]][:60]!r}): {mend}",
            )


def _stats(scored: Scored, trained: Tensor, rewards: Tensor, advantages: Tensor, returns: Tensor) -> ExperienceStats:
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
        reward_mean=_mean(rewards.double().sum(1)[trained.any(1)]),
        kl=float(kl.sum()) / len(scored),
        kl_per_token=float(kl.mean()),
        advantage_mean=_mean(advantage),
        advantage_std=_mean((advantage - advantage.mean()).square()) ** 0.5,
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


def _mean(x: Tensor) -> float:
    return float(x.mean()) if x.numel() else 0.0
