"""The reward model learns again while PPO runs (the section `retraining`; iterated online RLHF, arXiv 2204.05862).

Before some steps fresh responses of the policy flow in, a judge compares them, and the weights of the reward model
change; metrics flow out. All that it draws follows from the run's seed and the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cluster.ranks.role_group import RoleGroup
from cluster.role_table import REWARD
from orchestrator.config.retraining import RetrainingConfig
from orchestrator.config.run import RunConfig
from orchestrator.data.comparisons import group_shards, with_preference
from orchestrator.data.epochs import schedule_of
from orchestrator.data.prompts import PromptSource, Questions
from orchestrator.groups.scoring import Roles
from orchestrator.groups.spread import spread
from orchestrator.ppo.score_change import ScoreChange
from orchestrator.ppo.scores import RunningScale
from orchestrator.ppo.state import TrainState
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.fresh_labels import Labels
from roles.batch import Preferences, Rollouts, Sequences
from roles.measured import measured
from roles.packing import right_padded
from roles.reward_trainer import RewardStats, RewardTrainer
from roles.seeds import short_seed


@dataclass(slots=True)
class Retraining:
    """The reward model of a PPO run, as it goes on learning."""

    config: RunConfig
    roles: Roles
    questions: Questions
    """The training prompts."""
    labels: Labels
    pinned: list[list[int]] = field(default_factory=list)
    """Token ids of the responses that are scored before and after; none before the first retraining."""

    @property
    def group(self) -> RoleGroup[RewardTrainer]:
        """The ranks of the reward model."""
        return self.roles.reward.members[REWARD].group

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""
        return {"pinned": self.pinned}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of `state_dict`."""
        self.pinned = state["pinned"]

    def before_step(self, state: TrainState, clock: Clock) -> dict[str, float]:
        """Retrain the reward model if it is due before the next PPO step. Metrics; none if it is not due."""
        if not self._settings.due(state.step, state.warm_at):
            return {}
        with clock("label"):
            rollouts = self._sampled(state)
            pairs = with_preference(self.labels(rollouts))
        self.pinned = self.pinned or [
            rollouts.token_ids[row, : int(rollouts.lengths[row])].tolist() for row in range(self._settings.pinned)
        ]
        with clock("retrain"):
            before, accuracy = self._scores(self._pinned()), self._accuracy(pairs)
            learned = self._learn(pairs, state.step)
            change = ScoreChange.of(before, self._scores(self._pinned()))
            if learned:
                state.scale = RunningScale()  # of the new scores
        return {"retraining/comparisons": len(pairs.comparisons()), **accuracy, **_of(learned), **measured(change)}

    @property
    def _settings(self) -> RetrainingConfig:
        assert self.config.retraining is not None
        return self.config.retraining

    def _sampled(self, state: TrainState) -> Rollouts:
        """Responses of the current policy to training prompts that are drawn for this step."""
        source = PromptSource(self.questions, short_seed(self.config.seed, "retraining", state.step))
        prompts = source.next(self._settings.prompts, self._settings.responses_per_prompt)
        return self.roles.policy.generate(prompts, version=state.version)

    def _learn(self, pairs: Preferences, step: int) -> list[RewardStats]:
        """Take the optimizer steps of this retraining."""
        settings, groups = self._settings, pairs.groups.unique().tolist()
        seed = (short_seed(self.config.seed, "retraining", step), "reward")
        stats = []
        for own in schedule_of(groups, settings.groups_per_step, settings.epochs, seed):
            shards = pairs.split(group_shards(own, pairs, len(self.group)))
            stats.append(self.group.map(RewardTrainer.update, shards).result(self.config.deadlines.update_s)[0])
        return stats

    def _accuracy(self, pairs: Preferences) -> dict[str, float]:
        """Of the fresh comparisons, how many the reward model orders rightly before it learns from them."""
        if not len(pairs):
            return {}
        better, worse = self._scores(pairs)[pairs.comparisons()].unbind(1)
        return {"retraining/accuracy": float((better > worse).double().mean())}

    def _pinned(self) -> Sequences:
        token_ids, lengths = right_padded(self.pinned)
        return Sequences(token_ids, lengths, torch.arange(token_ids.shape[1]) < lengths.unsqueeze(1))

    def _scores(self, rows: Sequences | Preferences) -> Tensor:
        return spread(self.group, RewardTrainer.score, rows).result(self.config.deadlines.score_s)


def _of(learned: Sequence[RewardStats]) -> dict[str, float]:
    """Means over the optimizer steps, and the last learning rate."""
    if not learned:
        return {}
    return {
        "retraining/loss": sum(one.loss for one in learned) / len(learned),
        "retraining/gradient_norm": sum(one.gradient_norm for one in learned) / len(learned),
        "lr/reward": learned[-1].learning_rate,
    }


def told(metrics: dict[str, float], step: int) -> str:
    """A retraining in a line for the user."""
    if not metrics["retraining/comparisons"]:
        return f"before step {step + 1} the judge preferred none of the fresh responses: the reward stays as it is"
    before, after = metrics["retraining/pinned_mean_before"], metrics["retraining/pinned_mean"]
    correlation = metrics.get("retraining/pinned_rank_correlation")
    ranks = "" if correlation is None else f", rank correlation {correlation:.2f}"
    return (
        f"before step {step + 1} the reward model was retrained on {metrics['retraining/comparisons']:.0f} "
        f"comparisons, of which it ordered {metrics['retraining/accuracy']:.0%} rightly; mean score of the pinned "
        f"responses {before:+z.3f} -> {after:+z.3f}{ranks}"
    )
