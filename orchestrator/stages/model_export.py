"""`tetrarch export`: a checkpoint of a run flows in, the Hugging Face folder of one of its models flows out.

The run may go on meanwhile: nothing in its folder is written, and a checkpoint that it removes before its files are
open is an error that says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.role_table import ACTOR, CRITIC, REWARD
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import validate_root
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.roots import ROOTS, served
from orchestrator.errors import ConfigError
from orchestrator.ppo.scores import RunningScale
from orchestrator.report.run_files import read_record
from orchestrator.run.checkpoint import TRAINED, Checkpoint, damage, whole_folder
from orchestrator.run.resume_rules import RESUME_RULES
from orchestrator.run.resuming import written_settings
from orchestrator.stages.left_models import describe_model
from orchestrator.stages.policy_from_data import write_chat_template, write_ends
from roles.critic import load_critic
from roles.durable import hash_of
from roles.errors import RoleError
from roles.model_files.conversion import resolve_model
from roles.model_files.quiet import quiet
from roles.reward_trainer import load_for_training
from roles.zero.model_folder import open_state, write_state_as_folder
from roles.zero.part_files import PartFiles
from roles.zero.policy_loading import load_policy
from roles.zero.setup import ModelSetup


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A trained model in a checkpoint. Its files are open: they can be read even if the run removes them."""

    checkpoint: Checkpoint
    role: str
    config: BaseConfig
    """With which the checkpoint was written."""
    files: PartFiles

    @classmethod
    def open(cls, checkpoint: Checkpoint, role: str | None = None) -> StoredModel:
        """The model of `role` (None: the actor, or the only one). ConfigError if the checkpoint has no such model, has
        been removed, or holds other bytes than were written."""
        there = [name for name in _LOADERS if any(file.startswith(f"{name}/") for file in checkpoint.hashes)]
        if role is not None and role not in there:
            raise ConfigError(f"--role={role}: {checkpoint.path} holds the state of {' and '.join(there)}")
        role = role or next(iter(there), ACTOR)
        config = _configuration(checkpoint)
        section = config.sharded_section(role)
        with _told_if_removed(checkpoint):
            files = open_state(checkpoint.path / role, _setup(config, section, Path()))
            for name, written in checkpoint.hashes.items():
                if name.startswith(f"{role}/") and hash_of(checkpoint.path / name) != written:
                    raise RoleError(
                        f"{checkpoint.path / name} holds other bytes than were written; choose another step"
                    )
        return cls(checkpoint, role, config, files)

    def write(self, output: Path) -> None:
        """Write the folder that the run would have written after this step, whole or not at all."""
        section = self.config.sharded_section(self.role)
        assert section.model is not None
        with whole_folder(output) as folder, quiet():
            setup = _setup(self.config, section, resolve_model(section.model, Path(self.config.model_cache)))
            module = _LOADERS[self.role](self, setup)
            write_state_as_folder(module, self.files, folder, setup)
            (folder / TRAINED).write_text(json.dumps({"step": self.checkpoint.step}) + "\n")
            if isinstance(section, PolicyTrainingConfig):
                write_chat_template(section, folder)
                ends = self.checkpoint.state.get("ends", {})  # earlier versions have not kept them
                write_ends(folder, {int(token): text for token, text in ends.items()})

    def describe(self, folder: Path, run_dir: Path) -> None:
        """Write the model card into the folder of `write`. ValueError if a file of the run cannot be read."""
        step, settings = self.checkpoint.step, str(self.checkpoint.state["config"])
        describe_model(folder, self.role, step, read_record(run_dir), self.config, settings)


def _configuration(checkpoint: Checkpoint) -> BaseConfig:
    data, name = written_settings(checkpoint, "export it with that one")
    roots = [ROOTS[command] for command in served(data) if ROOTS[command] in RESUME_RULES]
    if not roots:
        raise ConfigError(f"{name} is for no command that trains; name the run_dir of a training")
    return validate_root(roots[0], data, name)


def _setup(config: BaseConfig, section: Any, folder: Path) -> ModelSetup:
    return ModelSetup(
        model_path=str(folder),
        device="cpu",
        dtype=config.dtype,
        seed=config.seed,
        zero=section.zero,
        micro_batch_tokens=section.micro_batch_tokens,
        lora=section.lora,
        trust_remote_code=section.model.trust_remote_code,
    )


def _critic(stored: StoredModel, setup: ModelSetup) -> Any:
    scale = RunningScale()  # says nothing where the targets are plain
    scale.load_state_dict(stored.checkpoint.state["value_scale"])
    module = load_critic(setup)
    module.rescale(scale.mean, scale.deviation)
    return module


def _reward(stored: StoredModel, setup: ModelSetup) -> Any:
    config = stored.config
    return load_for_training(setup, config.reward_training.pooling if isinstance(config, RewardTrainingRun) else None)


_LOADERS: Mapping[str, Callable[[StoredModel, ModelSetup], Any]] = {
    ACTOR: lambda stored, setup: load_policy(setup),
    CRITIC: _critic,
    REWARD: _reward,
}
"""Trained role → its module as it was before training."""


@contextmanager
def _told_if_removed(checkpoint: Checkpoint) -> Iterator[None]:
    """Context in which the files of a checkpoint are opened, which its run may remove meanwhile."""
    try:
        yield
    except (OSError, RoleError) as error:
        if damage(checkpoint.path) is None:
            raise
        raise ConfigError(
            f"{checkpoint.path} was removed while it was read: its run keeps the newest checkpoints only; export a "
            "newer step, or have the run keep more (checkpoint.keep, checkpoint.keep_every)"
        ) from error
