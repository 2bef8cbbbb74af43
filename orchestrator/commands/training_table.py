"""The table of commands that train: one row for each, from which `tetrarch NAME` and `tetrarch submit` follow.

A checked configuration flows in; what it names is checked and read, then the stage runs. Preparation and stages are
imported inside the functions, after the configuration has loaded, so that a mistake in it is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from cluster.role_table import ACTOR, REWARD
from orchestrator.config.base import BaseConfig
from orchestrator.config.dpo import DpoRun
from orchestrator.config.loading import lacks, served_by
from orchestrator.config.reward_training import RewardTrainingRun, SampledPairs
from orchestrator.config.role_needs import RoleNames, ppo_roles, reward_roles
from orchestrator.config.run import RunConfig
from orchestrator.config.sft import SftRun
from orchestrator.errors import ConfigError
from roles.config.preference_losses import KtoLoss

if TYPE_CHECKING:
    from cluster.config import Efficiency
    from orchestrator.commands.exit_codes import Outcome
    from orchestrator.planning.planned_layout import PlannedLayout
    from orchestrator.run.resuming import Resume


def _train(config: RunConfig, resume: Resume, report: Outcome) -> None:
    """Train the policy with PPO.

    Example: tetrarch train configs/smoke.yaml steps=20 actor.optimizer.learning_rate=1e-6
    """
    from orchestrator.checks.preparation import prepare_train

    data = prepare_train(config, resume)
    report.read(data.training, *data.heldout.values(), data.ptx)
    from orchestrator.stages.ppo import train

    train(config, resume, data)


def _reward(config: RewardTrainingRun, resume: Resume, report: Outcome) -> None:
    """Train a reward model from preference pairs (the section reward_training).

    Example: tetrarch reward configs/smoke.yaml reward_training.epochs=2
    """
    from orchestrator.checks.preparation import prepare_reward

    source = prepare_reward(config, resume)
    report.read(source)
    from orchestrator.stages.reward_training import train_reward

    train_reward(config, resume, source)
    if len(config.runs) > 1:
        members = {f"m{n}": {"model": {"path": run.reward_training.output}} for n, run in enumerate(config.runs, 1)}
        typer.echo(f"reward: {json.dumps({'type': 'ensemble', 'members': members})}")


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


def _plan_train(config: RunConfig, efficiency: Efficiency | None) -> Sequence[PlannedLayout]:
    from orchestrator.planning.layout_planner import layout

    return [layout(config, efficiency)]


def _plan_reward(config: RewardTrainingRun, efficiency: Efficiency | None) -> Sequence[PlannedLayout]:
    from orchestrator.planning.group_layout import Learning, learning_layout, sampling_layout

    training, policy = config.reward_training, config.policy
    pairs, together, layouts, title = training.pairs, 2, [], ""
    notes: tuple[str, ...] = ("every group of reward_training.pairs counts as two responses",)
    if isinstance(pairs, SampledPairs) and policy is not None:
        together, title, notes = pairs.responses_per_prompt, "the training", ()
        size: dict[str, Any] = {"prompts": pairs.prompts, "responses": together, "efficiency": efficiency}
        layouts = [sampling_layout(policy, reward_roles(config)[0], **size, title="the sampling of the pairs")]
    if len(config.runs) > 1:
        notes = (*notes, f"the {len(config.runs)} members are trained one after another: so many times the seconds")
    learning = Learning(
        REWARD,
        "reward_training",
        samples=training.groups_per_step * together,
        longest=training.max_tokens,
        together=together,
        value_head=True,
        head_only=training.freeze_backbone,
        notes=notes,
    )
    return [*layouts, learning_layout(config, learning, efficiency, title=title)]


def _plan_sft(config: SftRun, efficiency: Efficiency | None) -> Sequence[PlannedLayout]:
    from orchestrator.planning.group_layout import Learning, learning_layout

    sft = config.sft
    learning = Learning(ACTOR, sft.key, samples=sft.samples_per_step, longest=sft.max_tokens)
    return [learning_layout(config, learning, efficiency)]


def _plan_dpo(config: DpoRun, efficiency: Efficiency | None) -> Sequence[PlannedLayout]:
    from orchestrator.planning.group_layout import Learning, learning_layout

    dpo, together = config.dpo, 1 if isinstance(config.dpo.loss, KtoLoss) else 2
    notes = ("the pass over all responses before the first step, which asks the reference, is not counted",)
    learning = Learning(
        ACTOR,
        dpo.key,
        samples=dpo.samples_per_step * together,
        longest=dpo.max_tokens,
        together=together,
        notes=notes if dpo.loss.referenced else (),
    )
    return [learning_layout(config, learning, efficiency)]


def _model_roles(config: BaseConfig) -> list[RoleNames]:
    return [dict.fromkeys(config.model_roles)]


@dataclass(frozen=True, slots=True)
class Training:
    """One command that trains; its root of the configuration has the same name in `orchestrator.config.roots`."""

    start: Callable[[Any, Resume, Outcome], None]
    """Prepares, shows the data that it has read, and trains. Its docstring is the command's help."""
    layouts: Callable[[Any, Efficiency | None], Sequence[PlannedLayout]]
    """What its roles hold and how long they take (None: with the shipped efficiency); several if others take the
    places later, the longest training last."""
    roles: Callable[[Any], Sequence[RoleNames]] = _model_roles
    """The roles that need places at the same time; several mappings if others take their places later."""


TRAININGS = {
    "train": Training(_train, _plan_train, lambda config: [ppo_roles(config)]),
    "reward": Training(_reward, _plan_reward, reward_roles),
    "sft": Training(_sft, _plan_sft),
    "dpo": Training(_dpo, _plan_dpo),
}
"""Command → its row, in the order in which `--help` lists them."""
DEFAULT = "train"
"""What a job runs and a plan shows if the file is for this command too."""


def training_of(file: Path, overrides: Sequence[str], said: str | None, others: Sequence[str] = ()) -> str:
    """The training that is meant, or one of `others`: the one that the user has said, or the one that `file` is for.
    ConfigError if that is not clear."""
    if said is not None and said not in (*TRAININGS, *others):
        raise ConfigError(f"--command={said}: must be one of {', '.join((*TRAININGS, *others))}")
    if said is not None:
        return said
    served = served_by(file, overrides)
    found = [command for command in served if command in TRAININGS] or [one for one in served if one in others]
    if DEFAULT in found or not served:
        return DEFAULT
    if not found:
        missing = ", ".join(lacks(file, DEFAULT, overrides))
        raise ConfigError(
            f"{file} is for {' and for '.join(served)}, and for no training ({', '.join(TRAININGS)}); for {DEFAULT} it "
            f"lacks {missing}. Name another file, or add what is missing"
        )
    if len(found) > 1:
        raise ConfigError(f"{file} is for {' and for '.join(found)}; say which one: --command {found[0]}")
    return found[0]
