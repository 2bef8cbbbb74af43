"""Sizes of models without their weights: counted from the shapes in config.json.

A ModelConfig flows in, a ModelSize flows out; for LoRA, the number of trained parameters. An architecture that
`orchestrator.sizes.architectures` does not know is built on the meta device, which imports torch and transformers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from cluster.estimate.model_size import ModelSize
from cluster.role_table import ROLES
from orchestrator.config.base import BaseConfig
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.sizes.architectures import decoder_of, size_by_weights
from orchestrator.sizes.model_sources import UnknownModel, read_config, weights_count
from roles.config.models import LoraConfig, ModelConfig, TrainedRole
from roles.errors import ModelError


def adapters(config: RunConfig, role: str) -> int | None:
    """Number of parameters that LoRA trains in a role of PPO, including a value head; None if the role has no LoRA.

    Raises as `trained_by_lora` does. A model with a value head that does not exist yet counts as the actor's with a
    value head.
    """
    section, actors = config.section(role), config.actor.model
    key, cache_folder, head = f"{role}.model", Path(config.model_cache), ROLES[role].value_head

    def of(model: ModelConfig) -> int | None:
        return trained_by_lora(section.model_copy(update={"model": model}), key, cache_folder, value_head=head)

    try:
        return of(config.model_of(role) or actors)
    except UnknownModel:
        if not head:
            raise
        return of(actors)


def trained_by_lora(section: TrainedRole, key: str, cache_folder: Path, *, value_head: bool = False) -> int | None:
    """Number of parameters that LoRA trains in the model of a section, including a value head; None without LoRA.

    Raises as `model_size` does, and a ConfigError if a target is no layer of the model.
    """
    if section.lora is None or section.model is None:
        return None
    return _adapters(section.model, key, cache_folder, section.lora, value_head=value_head)


def check_adapters(config: BaseConfig) -> None:
    """Raise ConfigError if a target of LoRA is no layer of its model; a hub model's role checks it when it starts."""
    for key, section in config.trained.items():
        with suppress(UnknownModel):
            trained_by_lora(section, f"{key}.model", Path(config.model_cache))


@cache
def model_size(model: ModelConfig, key: str, cache_folder: Path, *, value_head: bool = False) -> ModelSize:
    """Size of a model folder or hub model. With `value_head` a head with one output replaces the language head.

    Raises:
        UnknownModel: there is no config.json, or its architecture is unknown.
        ConfigError: the folder cannot be read.
    """
    config = read_config(model, key, cache_folder)
    decoder = None if _own_code(model, config) else decoder_of(config)
    if decoder is not None:
        return decoder.size(value_head=value_head)
    from orchestrator.sizes.meta_models import size_of, transformers_config

    try:
        with _understood(model, key, config):
            made = transformers_config(config, model.path, trust_remote_code=model.trust_remote_code)
            return size_of(made, value_head=value_head, trust_remote_code=model.trust_remote_code)
    except UnknownModel:
        parameters = weights_count(model, config, cache_folder)
        estimated = None if parameters is None else size_by_weights(config, parameters, value_head=value_head)
        if estimated is None:
            raise
        return estimated


@cache
def _adapters(model: ModelConfig, key: str, cache_folder: Path, lora: LoraConfig, *, value_head: bool = False) -> int:
    config = read_config(model, key, cache_folder)
    decoder = None if _own_code(model, config) else decoder_of(config)
    targets = ("all-linear",) if lora.targets == "all-linear" else lora.targets
    trained = None if decoder is None else decoder.adapters(lora.rank, targets)
    if trained is None:
        from orchestrator.sizes.meta_models import adapters_of, transformers_config

        try:
            with _understood(model, key, config):
                made = transformers_config(config, model.path, trust_remote_code=model.trust_remote_code)
                trained = adapters_of(made, lora, trust_remote_code=model.trust_remote_code)
        except ModelError as error:
            raise ConfigError(f"{key.removesuffix('.model')}.{error}") from error
    return trained + (model_size(model, key, cache_folder).hidden if value_head else 0)


@contextmanager
def _understood(model: ModelConfig, key: str, config: dict[str, Any]) -> Iterator[None]:
    """Context that turns errors about the architecture into an UnknownModel."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, OSError, ImportError) as error:
        code = " (it has code of its own: set trust_remote_code=true if you trust it)" if "auto_map" in config else ""
        raise UnknownModel(
            f"{key}.path={model.path} is of the kind {config.get('model_type')}, whose sizes are not understood "
            f"({error}){code}; plan with a model of a similar size"
        ) from error


def _own_code(model: ModelConfig, config: dict[str, Any]) -> bool:
    """Whether the model needs code from its folder."""
    return model.trust_remote_code and "auto_map" in config
