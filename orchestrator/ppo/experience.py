"""Scored rollouts → rewards → advantages → what actor and critic learn from. Pure; on the whole batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cluster.role_table import ENGINES, ROLES
from orchestrator.config.advantages import Estimator
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.scores import BootstrapTruncated, MaskTruncated
from orchestrator.errors import NotFinite
from orchestrator.ppo.advantages import ESTIMATORS, whiten
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.stats import ExperienceStats, experience_stats
from roles.batch import Scored
from roles.losses.kl_estimators import KL_ESTIMATORS
from roles.shares import ActorExperience, CriticExperience


@dataclass(frozen=True, slots=True)
class Experience:
    """A batch of a PPO step as its two learners need it; row r is row r of the batch in both."""

    actor: ActorExperience
    critic: CriticExperience
    """Of no use without a critic."""


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
        sum to it (less the KL penalty): what its turns were paid is part of it.
        baselines: likewise, of the greedy response to each row's prompt, where the estimator is measured from it, float
        `[batch]`.
        value_scale: in whose units the critic's numbers are; None: in those of the rewards. The experience has `values`
        as the critic gave them, and `returns` in units of the rewards.

    Raises:
        NotFinite: a score, value or log-probability is not finite.
    """
    _check_finite(scored)
    rollouts, generated, critics = scored.rollouts, scored.rollouts.response_mask, scored.values
    if value_scale is not None:
        scored = replace(scored, values=value_scale.restored(critics))
    trained, bootstrap = _truncation(scored, ppo)
    scores = scored.scores if scores is None else scores
    penalty = _kl_penalty(scored, kl_coefficient, ppo)
    # What an environment paid stays with its turn; the last token gets the rest of the score.
    rewards = shape_rewards(scores - rollouts.turn_rewards.sum(1), penalty, generated) + rollouts.turn_rewards
    shaped = whiten(rewards, trained, shift_mean=False) if ppo.whiten_rewards else rewards
    advantages, returns = _estimated(
        ppo.advantage,
        rewards=shaped,
        mask=trained,
        values=scored.values,
        bootstrap=bootstrap,
        groups=torch.arange(len(scored)) // responses_per_prompt,
        baselines=baselines,
    )
    stats = experience_stats(scored, trained, rewards, advantages, returns)
    advantages = whiten(advantages, trained) if ppo.whitens else advantages
    return _by_role(scored, trained, advantages, critics, returns), stats


def _kl_penalty(scored: Scored, kl_coefficient: float, ppo: PpoConfig) -> Tensor:
    """What the reward of each token loses, float `[batch, time]`; 0 where the KL stands in the loss."""
    penalty = torch.zeros_like(scored.old_logprobs)
    if ppo.kl.where == "reward":
        estimate = KL_ESTIMATORS[ppo.kl.estimator]
        penalty = kl_coefficient * estimate(scored.old_logprobs, scored.reference_logprobs)
    return penalty


def _by_role(scored: Scored, trained: Tensor, advantages: Tensor, values: Tensor, returns: Tensor) -> Experience:
    """What the actor and what the critic is trained on; 0 on tokens that are not `trained`."""
    rollouts = scored.rollouts
    tokens = (rollouts.token_ids, rollouts.lengths, trained, torch.arange(len(scored)))
    actor = ActorExperience(
        *tokens,
        old_logprobs=scored.old_logprobs * trained,
        rollout_logprobs=rollouts.rollout_logprobs * trained,
        reference_logprobs=scored.reference_logprobs * trained,
        advantages=advantages,
    )
    return Experience(actor, CriticExperience(*tokens, values=values * trained, returns=returns))


def in_units_of(scale: RunningScale, critic: CriticExperience) -> CriticExperience:
    """`critic` with its returns, which are in units of the rewards, in those of `scale`."""
    return replace(critic, returns=scale.normalised(critic.returns) * critic.response_mask)


def _estimated(
    variant: Estimator,
    *,
    rewards: Tensor,
    mask: Tensor,
    values: Tensor,
    bootstrap: Tensor | None,
    groups: Tensor,
    baselines: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, float `[batch, time]` each: the estimator's function gets what its variant needs."""
    given: dict[str, Any] = {"rewards": rewards, "mask": mask, **variant.model_dump(exclude={"type"})}
    if variant.needs_critic:
        given |= {"values": values, "bootstrap": bootstrap}
    if variant.compares_responses:
        given["groups"] = groups
    if variant.needs_greedy:
        given["baselines"] = baselines
    found = ESTIMATORS[type(variant)](**given)
    return found if isinstance(found, tuple) else (found, found)


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


def _truncation(scored: Scored, ppo: PpoConfig) -> tuple[Tensor, Tensor | None]:
    """Trained tokens `[batch, time]`, value after the last token `[batch]` (None: 0)."""
    generated, finished = scored.rollouts.response_mask, scored.rollouts.finished
    match ppo.truncated:
        case MaskTruncated():
            return generated & finished.unsqueeze(1), None
        case BootstrapTruncated():
            last = last_generated(generated).unsqueeze(1)
            return generated, torch.where(finished, 0.0, scored.values.gather(1, last).squeeze(1))
        case _:
            return generated, None


def made_by() -> dict[str, str]:
    """What must be finite, and the role that it comes from."""
    return {role.fills: role.name for role in ROLES.values() if role.fills}


def _check_finite(scored: Scored) -> None:
    for name, role in made_by().items():
        tensor = getattr(scored.rollouts if role == ENGINES else scored, name)
        if not bool(tensor.isfinite().all()):
            bad = (~tensor.isfinite()).nonzero()[:, 0].unique().tolist()
            mend = (
                "look at the responses: it was not trained"
                if ROLES[role].frozen
                else "it has diverged; lower its learning rate, or resume from an earlier checkpoint"
            )
            raise NotFinite(
                role,
                f"the {role}'s {name} are not finite in rows {bad[:8]} of the batch ({len(bad)} of {len(scored)}; the "
                f"first has the prompt {scored.rollouts.prompts[bad[0]][:60]!r}): {mend}",
            )
