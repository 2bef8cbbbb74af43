"""Whether the models of a command can read its samples, from their config.json alone: for `plan` and `submit`, where
the folders need not be.

A configuration flows in; nothing flows out, or a ConfigError that names key, value and fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from orchestrator.checks.engine_fit import longest_sample
from orchestrator.checks.models import ModelFacts, check_context
from orchestrator.checks.role_models import role_models
from orchestrator.config.base import BaseConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.sampling import SamplingConfig
from orchestrator.config.schema import section_key
from orchestrator.sizes.model_sources import UnknownModel, read_config
from roles.config.models import ModelConfig


class Reader(NamedTuple):
    """A model that reads whole samples."""

    key: str
    model: ModelConfig
    longest: int
    """Most tokens of a sample."""
    said_by: str
    """The keys that determine it."""


def check_planned_models(config: BaseConfig) -> None:
    """Raise ConfigError if a sample may be longer than a model reads; models that are not at hand are passed over."""
    for reader in _readers(config):
        with suppress(UnknownModel):
            said = read_config(reader.model, reader.key, Path(config.model_cache))
            facts = ModelFacts(reader.key, reader.model, Path(reader.model.path), said)
            check_context(facts, reader.longest, reader.said_by)


def _readers(config: BaseConfig) -> Iterator[Reader]:
    if isinstance(config, EvaluationRun):
        bridged = {f"{section_key(role)}.model" for role, one in config.reward_models.items() if one.text_bridge}
        models = {key: model for key, model in role_models(config).items() if key not in bridged}
        yield from (Reader(key, model, *longest_sample(config)) for key, model in models.items())
    elif isinstance(config, SamplingConfig):
        yield Reader("actor.model", config.actor.model, *longest_sample(config))
    elif isinstance(config, RewardTrainingRun):
        key, training = "reward_training", config.reward_training
        yield Reader(f"{key}.model", training.model, training.max_tokens, f"{key}.max_tokens")
        if config.policy is not None:
            yield from _readers(config.policy)
    for key, section in config.trained.items():
        if isinstance(section, PolicyTrainingConfig):
            yield Reader(f"{key}.model", section.model, section.max_tokens, f"{key}.max_tokens")
