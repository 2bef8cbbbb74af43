"""`tetrarch reward`: a reward model from comparisons, with the Bradley–Terry loss (arXiv 2203.02155, equation 1).

A RewardTrainingRun flows in; a sequence-classification folder flows out, its scores centred on the training responses
(the N+ details, arXiv 2403.17031).
"""

from __future__ import annotations

import json
import math
import random
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cluster.ranks.role_group import RoleGroup
from cluster.role_table import REWARD
from orchestrator.config.reward_training import RewardTrainingConfig, RewardTrainingRun, SampledPairs
from orchestrator.data.comparisons import Comparisons, split
from orchestrator.data.preference_pairs import Pairs
from orchestrator.data.prompts import Questions
from orchestrator.errors import TetrarchError
from orchestrator.groups.build import builder, resolve_models
from orchestrator.groups.spread import spread
from orchestrator.report.progress import Progress, make_progress
from orchestrator.run.checkpoint import whole_folder
from orchestrator.stages.sampled_pairs import sampled
from roles.batch import Preferences
from roles.model_files.conversion import resolve_model
from roles.packing import balance
from roles.reward_trainer import RewardTrainer
from roles.seeds import stable_seed


@dataclass(frozen=True, slots=True)
class RewardQuality:
    """How often the model orders a held-out pair as the judge does."""

    accuracy: float
    standard_error: float
    comparisons: int
    training_comparisons: int
    left_out_groups: int

    @property
    def surely_above(self) -> float:
        """Lower end of the accuracy's 95 % interval (normal approximation)."""
        return self.accuracy - 1.96 * self.standard_error


def train_reward(config: RewardTrainingRun, source: Questions | Pairs) -> RewardQuality:
    """Get the comparisons, train, test on held-out groups, save to `reward_training.output`.

    Args:
        source: the prompts whose responses are compared, or the pairs of a data set.
    """
    training = config.reward_training
    with closing(make_progress("reward", 0, 0)) as progress:
        progress.status("preparing the models")
        backbone = resolve_model(training.model, Path(config.model_cache))
        comparisons = split(_preferences(config, training, source, progress), training, config.seed)
        progress.lines(
            f"{len(comparisons.training.comparisons())} comparisons to train on, "
            f"{len(comparisons.heldout.comparisons())} held out, {comparisons.left_out} groups left out"
        )
        progress.status("starting the reward model")
        schedule = _schedule(comparisons.training, training, config.seed)
        with builder(config, {REWARD: None}) as build:
            trainer = build.reward_trainer(backbone, training, len(schedule))
            build.ready()
            return _train(config, training, trainer, comparisons, schedule, progress)


def _preferences(
    config: RewardTrainingRun, training: RewardTrainingConfig, source: Questions | Pairs, progress: Progress
) -> Preferences:
    if isinstance(source, Pairs):
        return source.preferences
    policy = config.policy
    assert policy is not None and isinstance(training.pairs, SampledPairs)
    return sampled(policy, training.pairs, source, resolve_models(policy, ()), progress)


def _train(
    config: RewardTrainingRun,
    training: RewardTrainingConfig,
    trainer: RoleGroup[RewardTrainer],
    comparisons: Comparisons,
    schedule: list[list[int]],
    progress: Progress,
) -> RewardQuality:
    deadlines = config.deadlines
    progress.status(f"training on {len(schedule)} batches of {training.groups_per_step} groups")
    for number, step in enumerate(schedule, start=1):
        shards = comparisons.training.split(_share(step, comparisons.training, len(trainer)))
        stats = trainer.map(RewardTrainer.update, shards).result(deadlines.update_s)[0]
        if number % max(1, len(schedule) // 10) == 0 or number == len(schedule):
            progress.lines(f"batch {number}/{len(schedule)}  loss {stats.loss:.3f}  accuracy {stats.accuracy:.0%}")
    progress.status("testing on the held-out comparisons")
    quality = _quality(
        spread(trainer, RewardTrainer.scores, comparisons.heldout).result(deadlines.score_s), comparisons
    )
    progress.lines(
        f"held-out pair accuracy {quality.accuracy:.1%} ± {quality.standard_error:.1%} "
        f"on {quality.comparisons} comparisons"
    )
    check_quality(quality, training.minimum_accuracy)
    centre = float(spread(trainer, RewardTrainer.scores, comparisons.training).result(deadlines.score_s).mean())
    _save(trainer, Path(training.output), centre, quality, deadlines.save_s)
    progress.lines(f"saved to {training.output}")
    return quality


def check_quality(quality: RewardQuality, minimum: float) -> None:
    """TetrarchError unless the accuracy is above `minimum` for all that chance can do to it."""
    if quality.surely_above <= minimum and minimum:
        raise TetrarchError(
            f"held-out pair accuracy {quality.accuracy:.1%} ± {quality.standard_error:.1%} is not surely above "
            f"reward_training.minimum_accuracy={minimum:.0%} (95 % interval from {quality.surely_above:.1%}); train on "
            "more pairs or for more epochs, or use a larger model"
        )


def _schedule(preferences: Preferences, training: RewardTrainingConfig, seed: int) -> list[list[int]]:
    """Group numbers of each optimizer step: a fresh permutation each epoch."""
    groups = preferences.groups.unique().tolist()
    steps = []
    for epoch in range(training.epochs):
        order = list(groups)
        random.Random(stable_seed(seed, "reward", epoch)).shuffle(order)
        size = training.groups_per_step
        steps += [order[first : first + size] for first in range(0, len(order), size)]
    return steps


def _share(groups: list[int], preferences: Preferences, ranks: int) -> list[list[int]]:
    """Rows of each rank: whole groups, shared out by tokens."""
    rows = {group: (preferences.groups == group).nonzero().flatten().tolist() for group in groups}
    tokens = [int(preferences.lengths[rows[group]].sum()) for group in groups]
    return [[row for place in part for row in rows[groups[place]]] for part in balance(tokens, ranks)]


def _quality(scores: torch.Tensor, comparisons: Comparisons) -> RewardQuality:
    """Accuracy over comparisons; its standard error over groups, whose comparisons are not independent."""
    better, worse = comparisons.heldout.comparisons().unbind(1)
    right = (scores[better] > scores[worse]).double()
    groups = comparisons.heldout.groups[better]
    excess = torch.stack([(right[groups == group] - right.mean()).sum() for group in groups.unique()])
    error = math.sqrt(float(excess.square().sum())) / len(right)
    return RewardQuality(
        accuracy=float(right.mean()),
        standard_error=error,
        comparisons=len(right),
        training_comparisons=len(comparisons.training.comparisons()),
        left_out_groups=comparisons.left_out,
    )


def _save(
    trainer: RoleGroup[RewardTrainer], output: Path, centre: float, quality: RewardQuality, deadline_s: float
) -> None:
    """The folder appears whole or not at all."""
    with whole_folder(output) as partial:
        trainer.call(RewardTrainer.save_model, str(partial), centre).result(deadline_s)
        (partial / "reward_quality.json").write_text(json.dumps(asdict(quality), indent=1) + "\n")
