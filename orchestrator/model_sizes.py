"""How large a model is, without its weights: built on the meta device from a config.json.

A ModelConfig flows in, a ModelSize flows out; for LoRA, the number of trained parameters. Called by
`orchestrator.planning` and `orchestrator.checks`.
"""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from cluster.memory import ModelSize
from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError
from roles.config import LoraConfig, ModelConfig, TrainedRole
from roles.conversion import resolve_model
from roles.errors import ModelError
from roles.lora import adapter_parameters

KNOWN = Path(__file__).with_name("known_models.yaml")


class UnknownModel(ConfigError):
    """Neither a folder nor a model whose size is known."""


def adapters(config: RunConfig, role: str) -> int | None:
    """How many parameters LoRA trains in `actor` or `critic`, a value head included; None where it has no LoRA.

    Raises as `model_size`, and a ConfigError where a target is no layer of the model. A critic that is not there yet
    counts as the actor's model with a value head.
    """
    section: TrainedRole = config.actor if role == "actor" else config.critic
    if section.lora is None:
        return None
    cache_folder, model = Path(config.model_cache), config.actor.model
    if role == "critic":
        try:
            own = config.critic_model or model
            return _adapters(own, "critic.model", cache_folder, section.lora, value_head=True)
        except UnknownModel:
            return _adapters(model, "critic.model", cache_folder, section.lora, value_head=True)
    return _adapters(model, "actor.model", cache_folder, section.lora)


def check_adapters(config: RunConfig) -> None:
    """ConfigError where a target of LoRA is no layer of its model; of a hub's model the role says it when it starts."""
    for role in sorted({"actor", "critic"} & set(config.model_roles)):
        with suppress(UnknownModel):
            adapters(config, role)


@cache
def _adapters(model: ModelConfig, key: str, cache_folder: Path, lora: LoraConfig, *, value_head: bool = False) -> int:
    config = _architecture(model, key, cache_folder)
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    try:
        trained = adapter_parameters(made, lora)
    except ModelError as error:
        raise ConfigError(f"{key.removesuffix('.model')}.{error}") from error
    return trained + (config.get_text_config().hidden_size if value_head else 0)


@cache
def model_size(model: ModelConfig, key: str, cache_folder: Path, *, value_head: bool = False) -> ModelSize:
    """Of the folder, or of a known model of that name. With `value_head` one output takes the language head's place.

    Raises:
        UnknownModel: neither is there.
        ConfigError: the folder cannot be read.
    """
    config = _architecture(model, key, cache_folder)
    try:
        return size_of(config, value_head=value_head)
    except (AttributeError, KeyError, ValueError) as error:
        raise UnknownModel(
            f"{key}.path={model.path} is of the kind {config.model_type}, whose sizes are not understood ({error}); "
            "plan with a model of a similar size"
        ) from error


def _architecture(model: ModelConfig, key: str, cache_folder: Path) -> PretrainedConfig:
    if not Path(model.path).expanduser().is_dir():
        config = _known(model.path, key)
        if model.layers is not None:
            config.num_hidden_layers = min(model.layers, config.num_hidden_layers)
        return config
    try:
        folder = str(resolve_model(model, cache_folder))
        return AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    except (ModelError, OSError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error


def size_of(config: PretrainedConfig, *, value_head: bool = False) -> ModelSize:
    """Counted on the meta device: exact, and nothing is allocated."""
    text: Any = config.get_text_config()
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    backbone, embedding = model.base_model, model.get_input_embeddings().weight.numel()
    kinds = [type(m).__name__ for m in backbone.modules()]
    layer = max(_count(m) for m in backbone.modules() if type(m).__name__ in (model._no_split_modules or kinds))
    heads = text.num_attention_heads
    return ModelSize(
        parameters=_count(backbone) + text.hidden_size if value_head else _count(model),
        layer=layer,
        embedding=embedding,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_width=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=0 if value_head else text.vocab_size,
    )


def _count(module: nn.Module) -> int:
    """Parameters; tied ones once."""
    return sum(p.numel() for p in module.parameters())


def _known(path: str, key: str) -> PretrainedConfig:
    table = _table()
    name = table["same_as"].get(path, path)
    if name not in table or name == "same_as":
        known = ", ".join(sorted(table["same_as"]))
        raise UnknownModel(
            f"{key}.path={path} is not a folder, and its size is not known without a download; put its config.json in "
            f"a folder and name that, or use one of {known}"
        )
    sizes = dict(table[name])
    return AutoConfig.for_model(sizes.pop("architecture"), tie_word_embeddings=False, **sizes)


@cache
def _table() -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    return table
