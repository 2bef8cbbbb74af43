"""`tetrarch sft`: a policy from demonstrations, with the cross-entropy of their responses.

An SftRun flows in; the folder of a language model flows out, from which the next stages start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.role_table import ACTOR
from orchestrator.config.sft import SFT_QUALITY, SftRun
from orchestrator.data.demonstrations import SftData
from orchestrator.groups.build import builder
from orchestrator.groups.spread import spread
from orchestrator.report.reporter import Reporter
from orchestrator.run.learned_data import LearnedData
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume
from orchestrator.stages.policy_folder import evaluation_due, save_policy
from orchestrator.stages.run import carry_out
from orchestrator.stages.scheduled_stage import ScheduledStage
from orchestrator.stages.stage import Stage, StepReport
from roles.batch import Sequences
from roles.measured import measured
from roles.model_files.conversion import resolve_model
from roles.packing import balance
from roles.shares import Demonstrations, RankShare
from roles.supervised import Supervised


@dataclass(frozen=True, slots=True)
class SftQuality:
    """How well the policy foresees demonstrations that it was not trained on."""

    loss: float
    """Nats per trained token."""
    perplexity: float
    samples: int

    def metrics(self) -> dict[str, float]:
        """By the names of `orchestrator.metrics`."""
        return {"sft/heldout_loss": self.loss, "sft/heldout_perplexity": self.perplexity}


def train_sft(config: SftRun, resume: Resume, data: SftData) -> SftQuality | None:
    """Train, test on what is held out, save to `sft.output`. None if nothing is held out."""
    sft, found = config.sft, []

    @contextmanager
    def start(report: Reporter) -> Iterator[Stage]:
        report.status("preparing the model")
        folder = resolve_model(sft.model, Path(config.model_cache))
        steps = data.schedule(sft, config.seed)
        report.expect(len(steps))
        report.status("starting the policy")
        with builder(config, {ACTOR: None}) as build:
            trainer = build.start(ACTOR, Supervised, (build.engine_setup(ACTOR, folder, sft, steps=len(steps)),))
            build.ready()
            learned = LearnedData.demonstrations(data.digest(), len(steps))
            stage = SupervisedTraining(build.cluster, trainer, steps, learned, report, config, data)
            yield stage
            found.append(stage.quality)

    carry_out(config, resume, start, title="SFT", data=data.summary.splitlines())
    return found[0]


@dataclass(slots=True)
class SupervisedTraining(ScheduledStage):
    """A policy in fine-tuning; a step is one optimizer step."""

    role = ACTOR
    config: SftRun
    data: SftData
    quality: SftQuality | None = None
    """At the last evaluation."""

    def one_step(self, clock: Clock) -> StepReport:
        """One optimizer step, and a test on what is held out when one is due."""
        with clock("update"):
            shares = _shares(self.data.training.select(self.schedule[self.step]), len(self.trainer))
            stats = self.trainer.map(Supervised.update, shares).result(self.config.deadlines.update_s)[0]
        self.step += 1
        metrics = measured(stats)
        if self.data.heldout is not None and evaluation_due(self.step, self.steps, self.config.sft):
            with clock("evaluate"):
                metrics |= self._test().metrics()
        return StepReport(metrics)

    def evaluate(self, label: str) -> None:
        """Tell how well the policy foresees what is held out."""
        if self.data.heldout is not None:
            if self.quality is None or label == "before":
                self._test()
            assert self.quality is not None
            told = f"{self.quality.loss:.4f} nats per token, perplexity {self.quality.perplexity:.3f}"
            self.report.note(f"held out, {label} training: {told} on {self.quality.samples} samples")

    def save_models(self) -> None:
        """Write the model to `sft.output`, whole or not at all, with the chat template and what is known of it."""
        quality = asdict(self.quality) if self.quality else {}
        save_policy(self.trainer, self.config.sft, {SFT_QUALITY: quality}, self.config.deadlines.save_s)
        self.report.note(f"saved to {self.config.sft.output}")

    def _test(self) -> SftQuality:
        heldout = self.data.heldout
        assert heldout is not None
        losses = spread(self.trainer, Supervised.losses, Sequences.of(heldout)).result(self.config.deadlines.score_s)
        loss = float(losses.double().sum() / heldout.response_mask.sum())
        self.quality = SftQuality(loss, math.exp(min(loss, 700.0)), len(heldout))
        return self.quality


def _shares(step: Demonstrations, ranks: int) -> list[RankShare[Demonstrations]]:
    """Each rank's part of one optimizer step, shared out by tokens."""
    parts = balance(step.lengths.tolist(), ranks)
    return [RankShare(step.select(rows), [list(range(len(rows)))]) for rows in parts]
