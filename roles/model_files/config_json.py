"""What the config.json of a model folder says.

A folder or its values flow in; a ModelError with key, value and fix flows out where no model can be made of them.
Imports neither torch nor, unless a model's class is asked for, transformers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roles.errors import ModelError
from roles.text.json_files import read_json_object

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx")
"""How configurations of different architectures call the longest sequence they know."""

LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
"""How they call the number of decoder layers."""

SIZES = (
    *("hidden_size", "n_embd", "intermediate_size", "vocab_size", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads", *LAYER_KEYS, *CONTEXT_KEYS),
)
"""Keys whose values are whole numbers above 0, or lists of them."""

MOST_LAYERS, LARGEST = 10_000, 2**40
"""Above these a number is a mistake; to build a model of it would never end."""

QUANTISED = ("quantization_config", "compression_config")
"""Keys of a folder whose weights are quantised."""


def config_json(folder: Path) -> dict[str, Any]:
    """The values of the config.json in `folder`, checked."""
    config = read_json_object(folder / "config.json")
    check_config(config)
    return config


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a configuration that the language model has, in a model of several parts."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def context_of(text: Mapping[str, Any]) -> int | None:
    """Longest sequence in tokens that a language model's configuration names; None for one without a limit."""
    found = [text[key] for key in CONTEXT_KEYS if isinstance(text.get(key), int)]
    return min(found) if found else None


def check_config(config: Mapping[str, Any]) -> None:
    """The values have types and sizes that a decoder can have, and its weights are whole."""
    _check_types(config)
    if "model_type" not in config and not config.get("auto_map"):
        raise ModelError("config.json names no model_type; name a transformers model's folder")
    for part in (config, text_part(config)):
        found = next((part[key] for key in QUANTISED if part.get(key)), None)
        if found:
            raise ModelError(quantised(f"config.json: {_method(found)}"))
    if config.get("is_encoder_decoder"):
        raise ModelError(f"it is an encoder-decoder ({config.get('model_type')}); use a decoder-only model")
    for key in SIZES:
        value = text_part(config).get(key)
        for size in value if isinstance(value, list) and value else [value]:
            most = MOST_LAYERS if key in LAYER_KEYS else LARGEST
            if size is not None and (type(size) is not int or not 1 <= size <= most):
                raise ModelError(f"config.json says {key}={value!r}, which is no size; fetch it anew")


def quantised(what: str) -> str:
    """The error of a folder that is quantised, as `what` shows."""
    return (
        f"it is quantised ({what}), and training needs whole weights; name the folder that it was made from (in "
        "bfloat16, float16 or float32)"
    )


def _check_types(config: Mapping[str, Any]) -> None:
    kinds = {"model_type": str, "auto_map": dict, "text_config": dict, "architectures": list}
    for key, kind in kinds.items():
        value = config.get(key)
        wrong = not isinstance(value, kind) or (kind is list and not all(isinstance(name, str) for name in value))
        if key in config and wrong and (value is not None or key in ("model_type", "text_config")):
            wanted = {str: "text", dict: "an object", list: "a list of names"}[kind]
            raise ModelError(f"config.json says {key}={value!r}, which is not {wanted}; fetch it anew")


def _method(found: Any) -> str:
    return str(found.get("quant_method", "of an unknown kind")) if isinstance(found, dict) else repr(found)


def read_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config.json of `folder`, as transformers understands it; ModelError where it does not."""
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (Exception, SystemExit) as error:  # of its own kinds; whatever comes of a wrong value, or of code of its own
        raise _not_understood(read_json_object(folder / "config.json"), error, trust_remote_code) from None
    return config


def _not_understood(said: Mapping[str, Any], error: BaseException, trusted: bool) -> ModelError:
    from transformers import CONFIG_MAPPING, __version__

    kind = said.get("model_type")
    if said.get("auto_map") and kind not in CONFIG_MAPPING:
        if not trusted:
            return ModelError(
                f"model_type={kind} has code of its own (auto_map in config.json); set trust_remote_code: true beside "
                "path if you trust it"
            )
        return ModelError(
            f"the code of model_type={kind} (auto_map in config.json) fails: {first_line(error)}; correct it, or "
            "install what it needs"
        )
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(kind), CONFIG_MAPPING, n=1, cutoff=0.75)
        hint = f"; did you mean {near[0]}?" if near else ""
        return ModelError(
            f"config.json says model_type={kind!r}, which transformers {__version__} does not know{hint}; use a model "
            "of a type that it knows"
        )
    return ModelError(f"transformers cannot read the config.json ({first_line(error)}); correct it")


def first_line(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    return " ".join(str(error).split())[:200] or type(error).__name__
