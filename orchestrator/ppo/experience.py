"""Experience: scored rollouts → rewards → advantages → training data of actor and critic. Pure.

Each function is for some rows of a batch; what needs all of them (whitening) flows in as moments.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cluster.role_table import ENGINES, ROLES
from orchestrator.config.advantages import Estimator
from orchestrator.config.ppo import PpoConfig
from orchestrator.config.scores import BootstrapTruncated, MaskTruncated
from orchestrator.errors import NotFinite
from orchestrator.ppo.advantages import ESTIMATORS, whitened
from orchestrator.ppo.moments import Moments
from orchestrator.ppo.scores import RunningScale, shape_turns
from roles.batch import Rollouts, Scored
from roles.config.losses import NoCorrection
from roles.losses.kl_estimators import KL_ESTIMATORS
from roles.shares import ActorExperience, CriticExperience


@dataclass(frozen=True, slots=True)
class Experience:
    """The training data of a PPO step for actor and critic; row r is the same response in both."""

    actor: ActorExperience
    critic: CriticExperience
    """Training data of the critic; not used without a critic."""


@dataclass(frozen=True, slots=True)
class Terms:
    """How the experience of a step is made, for all of its rows."""

    ppo: PpoConfig
    kl_coefficient: float = 0.0
    """β of the penalty that is subtracted from the rewards."""
    responses_per_prompt: int = 1
    scale: RunningScale = field(default_factory=RunningScale)
    """Units of the final scores, to which the rewards of turns are brought."""
    value_scale: RunningScale | None = None
    """Units of the critic's numbers; None: those of the rewards."""


class Estimates(NamedTuple):
    """What rows are trained with, in units of the rewards and not whitened; float `[batch, time]` each."""

    advantages: Tensor
    returns: Tensor


def rewards_of(scored: Scored, scores: Tensor, terms: Terms) -> Tensor:
    """Rewards of every generated token, `[batch, time]`, 0 elsewhere. `scores`: float `[batch]`, the final ones
    (`orchestrator.ppo.scores`): a response's rewards sum to its score minus the KL penalty, and what an environment has
    paid for a turn, which is part of the score, stays with the turn."""
    rollouts = scored.rollouts
    turns = shape_turns(rollouts, terms.ppo, terms.scale)
    penalty = _kl_penalty(scored, terms.kl_coefficient, terms.ppo)
    return shape_rewards(scores - turns.sum(1), penalty, rollouts.response_mask) + turns


def estimates(
    scored: Scored, trained: Tensor, rewards: Tensor, baselines: Tensor | None, over: Moments, terms: Terms
) -> Estimates:
    """Advantages and returns of some rows; the responses to a prompt must be neighbours, and all of them be here.

    Truncated responses (`finished` False), by `ppo.truncated.type`: `score` and `penalty` treat them like any other
    (`orchestrator.ppo.scores` decides their score); `mask` excludes them from training, whitening and the counts of
    both; `bootstrap` lets the critic's value of the cut state follow the last token. There is no value of the state
    after the last token, so that of the state before it (`values` at its position) is used.

    Args:
        scored: its values in units of the rewards.
        trained: as of `trained_tokens`.
        rewards: as of `rewards_of`.
        baselines: float `[batch]`: final score of the greedy response to each row's prompt, if the estimator needs it.
        over: moments of the trained tokens' rewards of the whole batch, if they are to be whitened.
    """
    advantages, returns = _estimated(
        terms.ppo.advantage,
        rewards=whitened(rewards, trained, over, shift_mean=False) if terms.ppo.whiten_rewards else rewards,
        mask=trained,
        values=scored.values,
        bootstrap=_after_the_cut(scored, terms.ppo),
        groups=torch.arange(len(scored)) // terms.responses_per_prompt,
        baselines=baselines,
    )
    return Estimates(advantages, returns)


def _kl_penalty(scored: Scored, kl_coefficient: float, ppo: PpoConfig) -> Tensor:
    """KL penalty per token, float `[batch, time]`, subtracted from the rewards; 0 if the KL is in the loss."""
    penalty = torch.zeros_like(scored.old_logprobs)
    if ppo.kl.where == "reward":
        estimate = KL_ESTIMATORS[ppo.kl.estimator]
        penalty = kl_coefficient * estimate(scored.old_logprobs, scored.reference_logprobs)
    return penalty


def by_role(
    scored: Scored, trained: Tensor, advantages: Tensor, returns: Tensor, ppo: PpoConfig, first: int = 0
) -> Experience:
    """Split rows into the actor's and the critic's training data (`values` as the critic computed them; `first`: the
    batch's number of the first row); both are 0 on tokens that are not `trained`, and
    numbers that the loss does not read are 0 everywhere: zeros do not travel (`roles.rows.Batch`)."""
    rollouts = scored.rollouts
    tokens = (rollouts.token_ids, rollouts.lengths, trained, torch.arange(first, first + len(scored)))

    def kept(numbers: Tensor) -> Tensor:
        return numbers if trained is rollouts.response_mask else numbers * trained  # they are 0 outside of the mask

    unread = torch.zeros_like(advantages)
    corrects, penalises = not isinstance(ppo.policy.importance, NoCorrection), ppo.kl.where == "loss"
    actor = ActorExperience(
        *tokens,
        old_logprobs=kept(scored.old_logprobs),
        rollout_logprobs=kept(rollouts.rollout_logprobs) if corrects else unread,
        reference_logprobs=kept(scored.reference_logprobs) if penalises else unread,
        advantages=advantages,
    )
    return Experience(actor, CriticExperience(*tokens, values=kept(scored.values), returns=returns))


def in_units_of(scale: RunningScale, critic: CriticExperience) -> CriticExperience:
    """`critic` with its returns converted from units of the rewards to those of `scale`."""
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
    """Advantages and returns, float `[batch, time]` each, by the estimator's function."""
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
    """Rewards: minus the KL penalty on every generated token, plus the score on the last one.

    Ziegler et al., arXiv 1909.08593, equation 2; the last token is EOS, or the last one before the length limit
    (trl#3750).

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


def trained_tokens(rollouts: Rollouts, ppo: PpoConfig) -> Tensor:
    """The tokens that are trained on, bool `[batch, time]`."""
    generated = rollouts.response_mask
    return generated & rollouts.finished.unsqueeze(1) if isinstance(ppo.truncated, MaskTruncated) else generated


def _after_the_cut(scored: Scored, ppo: PpoConfig) -> Tensor | None:
    """Value of the state after the last token, float `[batch]`; None: 0."""
    if not isinstance(ppo.truncated, BootstrapTruncated):
        return None
    finished, last = scored.rollouts.finished, last_generated(scored.rollouts.response_mask).unsqueeze(1)
    return torch.where(finished, 0.0, scored.values.gather(1, last).squeeze(1))


def made_by() -> dict[str, str]:
    """Field of scored rollouts that must be finite → the role that computes it."""
    return {role.fills: role.name for role in ROLES.values() if role.fills}


def check_finite(scored: Scored) -> None:
    """Raise NotFinite if a score, value or log-probability is not finite."""
    if wrong := not_finite(scored):
        raise wrong


def not_finite(scored: Scored, first: int = 0) -> NotFinite | None:
    """The error of a score, value or log-probability that is not finite; None if there is none. `first`: the batch's
    number of the first row."""
    for name, role in made_by().items():
        tensor = getattr(scored.rollouts if role == ENGINES else scored, name)
        if not bool(tensor.isfinite().all()):
            bad = (~tensor.isfinite()).nonzero()[:, 0].unique().tolist()
            fix = (
                "look at the responses: it was not trained"
                if ROLES[role].frozen
                else "it has diverged; lower its learning rate, or resume from an earlier checkpoint"
            )
            return NotFinite(
                role,
                f"the {role}'s {name} are not finite in rows {[first + row for row in bad[:8]]} of the batch "
                f"({len(bad)} of {len(scored)}; the first has the prompt "
                f"{scored.rollouts.prompts[bad[0]][:60]!r}): {fix}",
            )
    return None
