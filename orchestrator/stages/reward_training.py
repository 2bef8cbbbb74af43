"""`tetrarch reward`: trains a reward model on comparisons, with the Bradley–Terry loss (arXiv 2203.02155, equation 1).

A RewardTrainingRun flows in; a sequence-classification folder flows out, its scores centred on the training responses
(the N+ details, arXiv 2403.17031).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cluster.counts import counted
from cluster.role_table import REWARD
from orchestrator.config.reward_training import (
    COMPARISONS,
    QUALITY,
    RewardTrainingRun,
    SampledPairs,
)
from orchestrator.data.comparisons import Comparisons, digest, group_shards, keep, kept, schedule, split
from orchestrator.data.preference_pairs import Pairs
from orchestrator.data.prompts import Questions
from orchestrator.errors import NotFinite, TetrarchError
from orchestrator.groups.build import builder
from orchestrator.groups.resolved_models import resolve_models
from orchestrator.groups.spread import spread
from orchestrator.report.evaluation_results import wilson_interval
from orchestrator.report.reliability import ReliabilityBin, calibration_error, reliability
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import whole_folder
from orchestrator.run.ensemble_runs import member_runs, sampled_comparisons
from orchestrator.run.learned_data import LearnedData
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume
from orchestrator.stages.run_again import carry_through
from orchestrator.stages.sampled_pairs import sampled
from orchestrator.stages.scheduled_stage import ScheduledStage, check_warmup
from orchestrator.stages.stage import Stage, StepReport
from roles.batch import Preferences
from roles.model_files.conversion import resolve_model
from roles.reward_trainer import RewardTrainer


@dataclass(frozen=True, slots=True)
class RewardQuality:
    """Accuracy of the model on held-out pairs: how often it orders a pair as the judge does."""

    accuracy: float
    standard_error: float
    """Over groups, whose comparisons are not independent."""
    groups: int
    """Held-out groups."""
    comparisons: int
    training_comparisons: int
    left_out_groups: int
    reliability: Sequence[ReliabilityBin] = ()
    """How often it is right where it is how sure."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error of the probability of the better response."""
        return calibration_error(self.reliability)

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % interval: Wilson's, of as many independent comparisons as have this standard error (Korn
        and Graubard, Survey Methodology 24, 1998); of one per group if it is 0, because all were right or wrong."""
        variance = self.accuracy * (1 - self.accuracy)
        independent = variance / self.standard_error**2 if variance and self.standard_error else self.groups
        return wilson_interval(self.accuracy, min(independent, self.comparisons))

    @property
    def told(self) -> str:
        """For the user: the accuracy, and how sure it is."""
        low, high = self.interval
        return (
            f"{self.accuracy:.1%} on {counted(self.comparisons, 'comparison')} (95 % interval {low:.1%} to {high:.1%})"
        )

    def metrics(self) -> dict[str, float]:
        """Metrics by the names of `orchestrator.metrics`."""
        low, high = self.interval
        return {
            "preference/heldout_accuracy": self.accuracy,
            "preference/heldout_accuracy_low": low,
            "preference/heldout_accuracy_high": high,
            "preference/heldout_calibration_error": self.calibration_error,
        }

    def to_json(self) -> str:
        """The text of `reward_quality.json`."""
        return json.dumps({**asdict(self), "calibration_error": self.calibration_error}, indent=1) + "\n"


def train_reward(config: RewardTrainingRun, resume: Resume, source: Questions | Pairs) -> list[RewardQuality]:
    """Train the reward model; of an ensemble every member that is not done yet, one after another. Their qualities.

    Args:
        source: the prompts whose responses are compared, or the pairs of a data set.
    """
    runs, found = member_runs(config, resume), []
    for run in runs:
        same = not isinstance(source, Pairs) or run.comparisons == digest(source.preferences)
        if not run.done or not same:  # going on with other data is refused, with the reason
            found.append(_train(run.config, run.resume, source))
        if len(runs) > 1 and not isinstance(source, Pairs):
            source = Pairs(kept(sampled_comparisons(config)), "")
    return found


def _train(config: RewardTrainingRun, resume: Resume, source: Questions | Pairs) -> RewardQuality:
    """Get the comparisons, train, test on held-out groups, save to `reward_training.output`."""
    training, found = config.reward_training, []

    @contextmanager
    def start(report: Reporter) -> Iterator[Stage]:
        report.status("preparing the models")
        backbone = resolve_model(training.model, Path(config.model_cache))
        preferences = _preferences(config, resume, source, report)
        comparisons = split(preferences, training, config.seed)
        report.note(
            f"{counted(len(comparisons.training.comparisons()), 'comparison')} to train on, "
            f"{len(comparisons.heldout.comparisons())} held out, {counted(comparisons.left_out, 'group')} left out"
        )
        steps = schedule(comparisons.training, training, config.training_seed)
        check_warmup("reward_training", training.optimizer, len(steps))
        report.expect(len(steps))
        report.status("starting the reward model")
        with builder(config, {REWARD: None}, starting=report.starting) as build:
            trainer = build.reward_trainer(backbone, len(steps))
            build.ready()
            learned = LearnedData.comparisons(digest(preferences), len(steps))
            stage = RewardTraining(build.cluster, trainer, steps, learned, report, config, comparisons)
            yield stage
            found.append(stage.tested())

    read = source.summary.splitlines() if isinstance(source, Pairs) else []
    carry_through(config, resume, start, title="reward model", data=read)
    return found[0]


def _preferences(config: RewardTrainingRun, resume: Resume, source: Questions | Pairs, report: Reporter) -> Preferences:
    """The pairs of a data set; or pairs of the policy's responses, which are kept for resuming the run."""
    if isinstance(source, Pairs):
        return source.preferences
    policy, pairs, file = config.policy, config.reward_training.pairs, Path(config.run_dir) / COMPARISONS
    assert policy is not None and isinstance(pairs, SampledPairs)
    if resume is None or not file.exists():
        keep(sampled(policy, pairs, source, resolve_models(policy, ()), report), file)
    return kept(file)


@dataclass(slots=True)
class RewardTraining(ScheduledStage):
    """The training of a reward model; a step is one optimizer step on whole groups."""

    role = REWARD
    quality_metric = "preference/heldout_accuracy"
    config: RewardTrainingRun
    comparisons: Comparisons
    quality: RewardQuality | None = None
    """Quality after the last step, if that step ended an epoch."""

    def one_step(self, clock: Clock) -> StepReport:
        """Take one optimizer step; after the last one of an epoch, test on the held-out comparisons."""
        pairs, deadline_s = self.comparisons.training, self.config.deadlines.update_s
        self.quality = None
        with clock("update"):
            shards = pairs.split(group_shards(self.schedule[self.step], pairs, len(self.trainer)))
            stats = self.trainer.map(RewardTrainer.update, shards).result(deadline_s)[0]
        self.step += 1
        metrics = {
            "preference/loss": stats.loss,
            "preference/accuracy": stats.accuracy,
            "preference/gradient_norm": stats.gradient_norm,
            "lr/reward": stats.learning_rate,
        }
        if self.step % (self.steps // self.config.reward_training.epochs) == 0:
            with clock("evaluate"):
                metrics |= self.tested().metrics()
        return StepReport(metrics)

    def tested(self) -> RewardQuality:
        """The accuracy of the current model on held-out pairs."""
        if self.quality is None:
            scores = self._scores(self.comparisons.heldout)
            self.quality = _quality(scores, self.comparisons)
            self.report.reliability(self.quality.reliability)
        return self.quality

    def save_models(self) -> None:
        """Write the model and its quality to `reward_training.output` if it is good enough, completely or not at
        all."""
        training, quality = self.config.reward_training, self.tested()
        self.report.note(f"held-out pair accuracy {quality.told}, calibration error {quality.calibration_error:.1%}")
        check_quality(quality, training.minimum_accuracy)
        self._save(Path(training.output))
        (Path(self.config.run_dir) / QUALITY).write_text(quality.to_json())
        self.report.note(f"saved to {training.output}")

    def save_models_in(self, folder: Path) -> None:
        """Write the model and its quality to `folder/reward`."""
        self._save(folder / self.role)

    def _save(self, output: Path) -> None:
        """Save the model, its scores centred on the training responses, with its quality, completely or not at all."""
        centre = float(self._scores(self.comparisons.training).mean())
        with whole_folder(output) as partial:
            self.trainer.call(RewardTrainer.save_model, str(partial), centre).result(self.config.deadlines.save_s)
            (partial / QUALITY).write_text(self.tested().to_json())

    def _scores(self, preferences: Preferences) -> torch.Tensor:
        """The model's scores, float32 `[batch]`; NotFinite if one is not."""
        scores = spread(self.trainer, RewardTrainer.score, preferences).result(self.config.deadlines.score_s)
        if not bool(scores.isfinite().all()):
            rows = (~scores.isfinite()).nonzero().flatten().tolist()
            raise NotFinite(
                REWARD, f"the trained model's score is not finite for {len(rows)} of {len(scores)} responses"
            )
        return scores


def check_quality(quality: RewardQuality, minimum: float) -> None:
    """Raise TetrarchError unless the accuracy is above `minimum` by more than chance explains."""
    if quality.interval[0] <= minimum and minimum:
        raise TetrarchError(
            f"held-out pair accuracy {quality.told} is not surely above reward_training.minimum_accuracy="
            f"{minimum:.0%}; train on more pairs or for more epochs, hold more pairs out, or use a larger model"
        )


def _quality(scores: torch.Tensor, comparisons: Comparisons) -> RewardQuality:
    """Accuracy and calibration over comparisons; the accuracy's standard error over groups."""
    better, worse = comparisons.heldout.comparisons().unbind(1)
    differences = (scores[better] - scores[worse]).double()
    right = (differences > 0).double()
    groups = comparisons.heldout.groups[better]
    excess = torch.stack([(right[groups == group] - right.mean()).sum() for group in groups.unique()])
    error = math.sqrt(float(excess.square().sum())) / len(right)
    return RewardQuality(
        accuracy=float(right.mean()),
        standard_error=error,
        groups=len(excess),
        comparisons=len(right),
        training_comparisons=len(comparisons.training.comparisons()),
        left_out_groups=comparisons.left_out,
        reliability=reliability(differences.tolist(), comparisons.heldout.certainty[better].tolist()),
    )
