"""Experience: scored rollouts → rewards → advantages → training data of actor and critic. Pure; on the whole batch."""

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
from roles.config.losses import NoCorrection
from roles.losses.kl_estimators import KL_ESTIMATORS
from roles.shares import ActorExperience, CriticExperience


@dataclass(frozen=True, slots=True)
class Experience:
    """The training data of a PPO step for actor and critic; row r is the same response in both."""

    actor: ActorExperience
    critic: CriticExperience
    """Training data of the critic; not used without a critic."""


def to_experience(
    scored: Scored,
    kl_coefficient: float,
    ppo: PpoConfig,
    *,
    responses_per_prompt: int = 1,
    scores: Tensor | None = None,
    turns: Tensor | None = None,
    baselines: Tensor | None = None,
    value_scale: RunningScale | None = None,
) -> tuple[Experience, ExperienceStats]:
    """The training data of a PPO step's whole batch; the responses to a prompt must be neighbours.

    Truncated responses (`finished` False), by `ppo.truncated.type`: `score` and `penalty` treat them like any other
    (`orchestrator.ppo.scores` decides their score); `mask` excludes them from training, whitening and the counts of
    both; `bootstrap` lets the critic's value of the cut state follow the last token. There is no value of the state
    after the last token, so that of the state before it (`values` at its position) is used.

    Args:
        scores: float `[batch]`: final scores in place of the raw ones (`orchestrator.ppo.scores`). A response's rewards
            sum to its score minus the KL penalty; the rewards of its turns are part of the score.
        turns: float `[batch, time]`: those rewards in the units of `scores`, in place of the raw ones.
        baselines: float `[batch]`: final score of the greedy response to each row's prompt, if the estimator needs it.
        value_scale: units of the critic's numbers; None: those of the rewards. The experience has `values` as the
            critic computed them, and `returns` in units of the rewards.

    Raises:
        NotFinite: a score, value or log-probability is not finite.
    """
    check_finite(scored)
    rollouts, generated, critics = scored.rollouts, scored.rollouts.response_mask, scored.values
    if value_scale is not None:
        scored = replace(scored, values=value_scale.restored(critics))
    trained, bootstrap = _truncation(scored, ppo)
    scores = scored.scores if scores is None else scores
    turns = rollouts.turn_rewards if turns is None else turns
    rewards = _rewards(scores, turns, _kl_penalty(scored, kl_coefficient, ppo), generated)
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
    stats = experience_stats(scored, trained, rewards, advantages, returns, responses_per_prompt)
    advantages = whiten(advantages, trained) if ppo.whitens else advantages
    return _by_role(scored, trained, advantages, critics, returns, ppo), stats


def _rewards(scores: Tensor, turns: Tensor, penalty: Tensor, mask: Tensor) -> Tensor:
    """What an environment paid stays with its turn; the last token gets the rest of the score."""
    return shape_rewards(scores - turns.sum(1), penalty, mask) + turns


def _kl_penalty(scored: Scored, kl_coefficient: float, ppo: PpoConfig) -> Tensor:
    """KL penalty per token, float `[batch, time]`, subtracted from the rewards; 0 if the KL is in the loss."""
    penalty = torch.zeros_like(scored.old_logprobs)
    if ppo.kl.where == "reward":
        estimate = KL_ESTIMATORS[ppo.kl.estimator]
        penalty = kl_coefficient * estimate(scored.old_logprobs, scored.reference_logprobs)
    return penalty


def _by_role(
    scored: Scored, trained: Tensor, advantages: Tensor, values: Tensor, returns: Tensor, ppo: PpoConfig
) -> Experience:
    """Split the batch into the actor's and the critic's training data; both are 0 on tokens that are not `trained`, and
    numbers that the loss does not read are 0 everywhere: zeros do not travel (`roles.rows.Batch`)."""
    rollouts = scored.rollouts
    tokens = (rollouts.token_ids, rollouts.lengths, trained, torch.arange(len(scored)))

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
    return Experience(actor, CriticExperience(*tokens, values=kept(values), returns=returns))


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


def _truncation(scored: Scored, ppo: PpoConfig) -> tuple[Tensor, Tensor | None]:
    """Trained tokens, bool `[batch, time]`; value after the last token, float `[batch]` (None: 0)."""
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
    """Field of scored rollouts that must be finite → the role that computes it."""
    return {role.fills: role.name for role in ROLES.values() if role.fills}


def check_finite(scored: Scored) -> None:
    """Raise NotFinite if a score, value or log-probability is not finite."""
    for name, role in made_by().items():
        tensor = getattr(scored.rollouts if role == ENGINES else scored, name)
        if not bool(tensor.isfinite().all()):
            bad = (~tensor.isfinite()).nonzero()[:, 0].unique().tolist()
            fix = (
                "look at the responses: it was not trained"
                if ROLES[role].frozen
                else "it has diverged; lower its learning rate, or resume from an earlier checkpoint"
            )
            raise NotFinite(
                role,
                f"the {role}'s {name} are not finite in rows {bad[:8]} of the batch ({len(bad)} of {len(scored)}; the "
                f"first has the prompt {scored.rollouts.prompts[bad[0]][:60]!r}): {fix}",
            )
