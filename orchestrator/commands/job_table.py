"""The commands that `tetrarch submit` runs besides those that train: one row for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.role_table import ENGINES
from orchestrator.commands.training_table import TRAININGS
from orchestrator.config.base import BaseConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.role_needs import RoleNames, scoring_roles
from orchestrator.config.roots import ROOTS
from orchestrator.config.serving import ServingRun


def _evaluation_roles(config: EvaluationRun) -> list[RoleNames]:
    return [{ENGINES: None, config.reference_role: None, **scoring_roles(config)}]


def _best_of_n_roles(config: ServingRun) -> list[RoleNames]:
    return [{ENGINES: None, **scoring_roles(config)}]


def _label_roles(config: LabellingRun) -> list[RoleNames]:
    return [dict.fromkeys(config.model_roles)]


@dataclass(frozen=True, slots=True)
class JobCommand:
    """A command without a plan and without checkpoints."""

    root: type[BaseConfig]
    """What it reads."""
    roles: Callable[[Any], Sequence[RoleNames]]
    """As of a training."""


JOBS = {
    "evaluate": JobCommand(EvaluationRun, _evaluation_roles),
    "best-of-n": JobCommand(ServingRun, _best_of_n_roles),
    "label": JobCommand(LabellingRun, _label_roles),
}
"""Command → its row."""


def job_root(command: str) -> type[BaseConfig]:
    """What a command of a job reads."""
    return JOBS[command].root if command in JOBS else ROOTS[command]


def job_roles(command: str, config: BaseConfig) -> Sequence[RoleNames]:
    """The roles of a command of a job that need places at the same time, one mapping after another."""
    row = JOBS.get(command) or TRAININGS[command]
    return row.roles(config)
