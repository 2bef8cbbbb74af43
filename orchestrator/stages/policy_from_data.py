"""What the trainings that make a policy of a data set have in common: `tetrarch sft` and `tetrarch dpo`.

A checked configuration and its data flow in; the folder of a language model flows out. A subclass says what a step is
and how what is held out is measured.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from cluster.counts import counted
from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ACTOR
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.config.base import BaseConfig
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.groups.build import builder
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import whole_folder
from orchestrator.run.phase_clock import Clock
from orchestrator.run.resuming import Resume
from orchestrator.stages.run_again import carry_through
from orchestrator.stages.scheduled_stage import ScheduledStage, check_warmup
from orchestrator.stages.stage import Stage, StepReport
from roles.model_files.conversion import resolve_model
from roles.rollout_setup import stop_token_ids
from roles.zero.trained_rank import TrainedPolicy


class TrainingData(Protocol):
    """What a policy is trained on, and what it is tested on."""

    @property
    def heldout(self) -> Any:
        """What it is tested on, with a length; None if nothing is held out."""

    @property
    def summary(self) -> str:
        """For the user: what was read, and how much of it is held out."""

    @property
    def ends(self) -> dict[int, str]:
        """Tokens with which it is learned to end a response, beside EOS; id → text."""

    def schedule(self, config: Any, seed: int) -> list[list[int]]:
        """Samples of each optimizer step."""


@dataclass(slots=True)
class PolicyTraining(ScheduledStage):
    """A policy that learns from a data set; a step is one optimizer step."""

    role = ACTOR
    quality_file: ClassVar[str]
    """File in the trained folder with what is known of the model."""
    config: Any
    data: Any
    """`TrainingData`."""
    quality: Any = field(default=None, kw_only=True)
    """A dataclass: what is held out, as it was measured at the last evaluation."""

    @property
    @abstractmethod
    def section(self) -> PolicyTrainingConfig:
        """The section of the training."""

    @abstractmethod
    def learn(self) -> dict[str, float]:
        """Take an optimizer step on the samples of the current step; its metrics."""

    @abstractmethod
    def test(self) -> dict[str, float]:
        """Measure what is held out, and set `quality`; its metrics."""

    @abstractmethod
    def told(self) -> str:
        """`quality`, for the user."""

    def state_dict(self) -> dict[str, Any]:
        """Number of steps done, the hash of the data, and how responses in it end, for an export of the checkpoint."""
        ends = {str(token): text for token, text in self.data.ends.items()}
        return {**ScheduledStage.state_dict(self), "ends": ends}

    def one_step(self, clock: Clock) -> StepReport:
        """One optimizer step, and a test on what is held out when one is due."""
        with clock("update"):
            metrics = self.learn()
        self.step += 1
        if self.data.heldout is not None and self._test_due():
            with clock("evaluate"):
                metrics |= self.test()
        return StepReport(metrics)

    def evaluate(self, label: str) -> None:
        """Tell what the policy makes of what is held out."""
        if self.data.heldout is not None:
            if self.quality is None or label == "before":
                self.test()
            samples = len(self.data.heldout)
            self.report.note(f"held out, {label} training: {self.told()} on {counted(samples, 'sample')}")

    def save_models(self) -> None:
        """Write the model to the section's `output`."""
        self._save(Path(self.section.output))
        self.report.note(f"saved to {self.section.output}")

    def save_models_in(self, folder: Path) -> None:
        """Write the model to `folder/actor`."""
        self._save(folder / self.role)

    def _save(self, output: Path) -> None:
        """Write the model, whole or not at all, with the chat template and what is known of it."""
        with whole_folder(output) as partial:
            self.trainer.call(TrainedPolicy.save_model, str(partial)).result(self.config.deadlines.save_s)
            write_chat_template(self.section, partial)
            if new := write_ends(partial, self.data.ends):
                self.report.note(f"the model's responses end with {', '.join(new)} from now on, as it has learned")
            quality = asdict(self.quality) if self.quality else {}
            (partial / self.quality_file).write_text(json.dumps(quality, indent=1) + "\n")

    def _test_due(self) -> bool:
        """Whether what is held out is tested after the step that has ended."""
        each = self.section.evaluate_every or self.steps // self.section.epochs
        return self.step == self.steps or self.step % each == 0


def write_chat_template(section: PolicyTrainingConfig, folder: Path) -> None:
    """Give the trained model in `folder` the chat template of the section, if it has one."""
    if section.chat_template is not None:
        template = Path(section.chat_template).read_text(encoding="utf-8")
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def write_ends(folder: Path, ends: Mapping[int, str]) -> list[str]:
    """Let engines end responses of the model in `folder` with the tokens `ends` too; those with which they did not.

    A base model has another EOS than the end of a turn in the chat template that it was trained with.
    """
    known = stop_token_ids(folder, None)
    new = {token: text for token, text in ends.items() if token not in known}
    if new:
        file = folder / "generation_config.json"
        written = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        text = json.dumps({**written, "eos_token_id": [*known, *new]}, indent=2)
        file.write_text(f"{text}\n", encoding="utf-8")
    return list(new.values())


def train_policy(
    config: BaseConfig,
    section: PolicyTrainingConfig,
    resume: Resume,
    data: TrainingData,
    kind: type[TrainedPolicy],
    make: Callable[[RayCluster, RoleGroup[Any], list[list[int]], Reporter, Path], PolicyTraining],
    *,
    title: str,
    arguments: tuple[Any, ...] = (),
) -> Any:
    """Train, test on what is held out, save to the section's `output`. The last `quality`.

    Args:
        kind: class of the ranks, made from their setup and `arguments`.
        make: the stage, from the cluster, the ranks, the steps' samples, the report and the folder of the start model,
            which the ranks have loaded.
    """
    found, steps = [], data.schedule(section, config.seed)
    check_warmup(section.key, section.optimizer, len(steps))

    @contextmanager
    def start(report: Reporter) -> Iterator[Stage]:
        report.status("preparing the model")
        folder = resolve_model(section.model, Path(config.model_cache))
        report.expect(len(steps))
        report.status("starting the policy")
        with builder(config, {ACTOR: None}, starting=report.starting) as build:
            setup = build.engine_setup(ACTOR, folder, section, steps=len(steps))
            trainer = build.start(ACTOR, kind, (setup, *arguments))
            build.ready()
            stage = make(build.cluster, trainer, steps, report, folder)
            yield stage
            found.append(stage.quality)

    carry_through(config, resume, start, title=title, data=data.summary.splitlines())
    return found[0]
