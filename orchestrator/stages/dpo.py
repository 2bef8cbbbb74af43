"""`tetrarch dpo`: a policy from comparisons or labelled responses, with a loss of the DPO family.

A DpoRun flows in; the folder of a language model flows out, which `tetrarch train`, `serve` and vLLM open.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cluster.role_table import ACTOR
from orchestrator.config.dpo import DPO_QUALITY, DpoRun
from orchestrator.data.preference_samples import DpoData
from orchestrator.errors import CheckpointError
from orchestrator.groups.build import builder
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import Checkpoint
from orchestrator.run.learned_data import LearnedData
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume
from orchestrator.stages.policy_folder import evaluation_due, save_policy
from orchestrator.stages.reference_logprobs import ReferenceLogprobs, ask_reference, response_logprobs
from orchestrator.stages.run import carry_out
from orchestrator.stages.scheduled_stage import ScheduledStage
from orchestrator.stages.stage import Stage, StepReport
from roles.losses.preference_loss import kto_kl
from roles.losses.preference_numbers import PreferenceNumbers, judged
from roles.measured import measured
from roles.model_files.conversion import resolve_model
from roles.packing import balance
from roles.preference_policy import PreferencePolicy


def train_dpo(config: DpoRun, resume: Resume, data: DpoData) -> PreferenceNumbers | None:
    """Ask the reference, train, test on what is held out, save to `dpo.output`. None if nothing is held out."""
    dpo, found = config.dpo, []

    @contextmanager
    def start(report: Reporter) -> Iterator[Stage]:
        report.status("preparing the model")
        folder = resolve_model(dpo.model, Path(config.model_cache))
        steps = data.schedule(dpo, config.seed)
        report.expect(len(steps))
        report.status("starting the policy")
        with builder(config, {ACTOR: None}) as build:
            setup = build.engine_setup(ACTOR, folder, dpo, steps=len(steps))
            trainer = build.start(ACTOR, PreferencePolicy, (setup, dpo.loss))
            build.ready()
            reference = ask_reference(trainer, config, folder, data, report)  # before a checkpoint is loaded
            learned = LearnedData.preferences(data.training.digest(), len(steps))
            stage = PreferenceTraining(build.cluster, trainer, steps, learned, report, config, data, reference)
            yield stage
            found.append(stage.quality)

    carry_out(config, resume, start, title="DPO", data=data.summary.splitlines())
    return found[0]


@dataclass(slots=True)
class PreferenceTraining(ScheduledStage):
    """A policy that learns preferences; a step is one optimizer step."""

    role = ACTOR
    config: DpoRun
    data: DpoData
    reference: ReferenceLogprobs
    quality: PreferenceNumbers | None = None
    """Of what is held out, at the last evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """Number of steps done, the hashes of the data and of the reference."""
        return {**ScheduledStage.state_dict(self), "reference": self.reference.model}

    def load_state(self, checkpoint: Checkpoint) -> None:
        """Raise CheckpointError if the checkpoint is of other data or another reference, or of more steps than the run
        has."""
        ScheduledStage.load_state(self, checkpoint)
        written = checkpoint.state.get("reference")
        if written != self.reference.model:
            raise CheckpointError(
                f"{checkpoint.path} was trained against the reference {written}, but "
                f"dpo.model={self.config.dpo.model.path} is now {self.reference.model}; put the model back, or start "
                "anew with another dpo.output"
            )

    def one_step(self, clock: Clock) -> StepReport:
        """One optimizer step, and a test on what is held out when one is due."""
        with clock("update"):
            batch = self.data.training.batch(self.schedule[self.step], self.reference.training)
            shards = batch.split(balance(batch.tokens.tolist(), len(self.trainer)))
            stats = self.trainer.map(PreferencePolicy.update, shards).result(self.config.deadlines.update_s)[0]
        self.step += 1
        metrics = measured(stats) | measured(stats.numbers)
        if self.data.heldout is not None and evaluation_due(self.step, self.steps, self.config.dpo):
            with clock("evaluate"):
                metrics |= heldout_metrics(self._test())
        return StepReport(metrics)

    def evaluate(self, label: str) -> None:
        """Tell what the policy makes of what is held out."""
        if self.data.heldout is not None:
            if self.quality is None or label == "before":
                self._test()
            assert self.quality is not None
            margin = "" if self.quality.margin is None else f", margin {self.quality.margin:.3f}"
            told = f"loss {self.quality.loss:.4f}, accuracy {self.quality.accuracy:.1%}{margin}"
            self.report.note(f"held out, {label} training: {told} on {len(self.data.heldout)} samples")

    def save_models(self) -> None:
        """Write the model to `dpo.output`, whole or not at all, with what is known of it."""
        quality = asdict(self.quality) if self.quality else {}
        save_policy(self.trainer, self.config.dpo, {DPO_QUALITY: quality}, self.config.deadlines.save_s)
        self.report.note(f"saved to {self.config.dpo.output}")

    def _test(self) -> PreferenceNumbers:
        heldout, reference, loss = self.data.heldout, self.reference.heldout, self.config.dpo.loss
        assert heldout is not None and reference is not None
        policy = response_logprobs(self.trainer, heldout.responses, self.config.deadlines.score_s)
        first, second = heldout.rows.unbind(1)
        batch, kl = heldout.batch(range(len(heldout)), reference), kto_kl(policy[second], reference[second])
        rows = first if heldout.desirable is not None else torch.cat([first, second])
        _, sums = judged(loss, batch, policy[rows], kl)
        self.quality = PreferenceNumbers.of(sums, loss, kl)
        return self.quality


def heldout_metrics(numbers: PreferenceNumbers) -> dict[str, float]:
    """By the names of `orchestrator.metrics`: those of a step, as `heldout_…`."""
    return {key.replace("/", "/heldout_"): value for key, value in measured(numbers).items()}
