"""The table of commands that train: one row for each, from which `tetrarch NAME` and `tetrarch submit` follow.

A checked configuration flows in; what it names is checked and read, then the stage runs. Preparation and stages are
imported inside the functions, after the configuration has loaded, so that a mistake in it is told at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.config.base import BaseConfig
from orchestrator.config.dpo import DpoRun
from orchestrator.config.loading import served_by
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.role_needs import RoleNames, ppo_roles, reward_roles
from orchestrator.config.run import RunConfig
from orchestrator.config.sft import SftRun
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.commands.exit_codes import Outcome
    from orchestrator.run.resuming import Resume


def _train(config: RunConfig, resume: Resume, report: Outcome) -> None:
    """Train the policy with PPO.

    Example: tetrarch train configs/smoke.yaml steps=20 actor.optimizer.learning_rate=1e-6
    """
    from orchestrator.checks.preparation import prepare_train

    training, heldout = prepare_train(config, resume)
    report.read(training, heldout)
    from orchestrator.stages.ppo import train

    train(config, resume, training, heldout)


def _reward(config: RewardTrainingRun, resume: Resume, report: Outcome) -> None:
    """Train a reward model from preference pairs (the section reward_training).

    Example: tetrarch reward configs/smoke.yaml reward_training.epochs=2
    """
    from orchestrator.checks.preparation import prepare_reward

    source = prepare_reward(config, resume)
    report.read(source)
    from orchestrator.stages.reward_training import train_reward

    train_reward(config, resume, source)


def _sft(config: SftRun, resume: Resume, report: Outcome) -> None:
    """Fine-tune a language model on demonstrations (the section sft): the policy that the other stages start from.

    Example: tetrarch sft configs/sft.yaml sft.epochs=2
    """
    from orchestrator.checks.policy_training import prepare_sft

    data = prepare_sft(config, resume)
    report.read(data)
    from orchestrator.stages.sft import train_sft

    train_sft(config, resume, data)


def _dpo(config: DpoRun, resume: Resume, report: Outcome) -> None:
    """Train a policy on preferences directly: DPO, IPO, KTO, SimPO and others (the section dpo).

    Example: tetrarch dpo configs/dpo.yaml 'dpo.loss={type: ipo, beta: 0.1}'
    """
    from orchestrator.checks.policy_training import prepare_dpo

    data = prepare_dpo(config, resume)
    report.read(data)
    from orchestrator.stages.dpo import train_dpo

    train_dpo(config, resume, data)


def _model_roles(config: BaseConfig) -> list[RoleNames]:
    return [dict.fromkeys(config.model_roles)]


@dataclass(frozen=True, slots=True)
class Training:
    """One command that trains; its root of the configuration has the same name in `orchestrator.config.roots`."""

    start: Callable[[Any, Resume, Outcome], None]
    """Prepares, shows the data that it has read, and trains. Its docstring is the command's help."""
    roles: Callable[[Any], Sequence[RoleNames]] = _model_roles
    """The roles that need places at the same time; several mappings if others take their places later."""


TRAININGS = {
    "train": Training(_train, lambda config: [ppo_roles(config)]),
    "reward": Training(_reward, reward_roles),
    "sft": Training(_sft),
    "dpo": Training(_dpo),
}
"""Command → its row, in the order in which `--help` lists them."""
DEFAULT = "train"
"""What a job runs if its file is for this command too."""


def training_of(file: Path, overrides: Sequence[str], said: str | None) -> str:
    """The training that a job runs: the one that the user has said, or the one that `file` is for. ConfigError if that
    is not clear."""
    if said is not None and said not in TRAININGS:
        raise ConfigError(f"--command={said}: must be one of {', '.join(TRAININGS)}")
    if said is not None:
        return said
    served = served_by(file, overrides)
    found = [command for command in served if command in TRAININGS]
    if DEFAULT in found or not found:
        return DEFAULT
    if len(found) > 1:
        raise ConfigError(f"{file} is for {' and for '.join(found)}; say which one: --command {found[0]}")
    return found[0]
