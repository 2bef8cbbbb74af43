"""A model's config.json from a folder, the hub's cache on this machine, our table, or the hub itself.

A ModelConfig flows in, its config.json flows out, cut to `layers`; no weights are fetched, and neither torch nor
transformers is imported (except for a GGUF file, which is converted).
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import yaml

from orchestrator.data.dataset_rows import is_hub_name
from orchestrator.errors import ConfigError
from roles.config.models import ModelConfig
from roles.errors import ModelError
from roles.model_files.config_json import LAYER_KEYS, config_json
from roles.model_files.folders import base_of, base_revision, folder_of, is_adapter, what_it_is
from roles.model_files.hub import file_text

KNOWN_MODELS = Path(__file__).with_name("known_models.yaml")
INDEX = "model.safetensors.index.json"

Config = dict[str, Any]


class UnknownModel(ConfigError):
    """The model is neither a folder nor a model whose size is known."""


def read_config(model: ModelConfig, key: str, cache_folder: Path) -> Config:
    """The model's config.json.

    Raises:
        UnknownModel: there is none.
        ConfigError: the folder cannot be read, or has fewer layers than `layers`.
    """
    folder = folder_of(model.path)
    found = os.path.isdir(folder)
    config = _in_folder(model, folder, key, cache_folder) if found else _named(*_at(model), cache_folder)
    if isinstance(config, str):
        raise UnknownModel(f"{key}.path={model.path} {config}")
    return config if model.layers is None else _cut(config, model, key)


@cache
def known_shapes() -> Mapping[str, Config]:
    """Name on the hub → the keys of its config.json that determine its shape, and its context if that is known."""
    shapes: dict[str, Any] = yaml.load(
        KNOWN_MODELS.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader
    )  # ten times as fast as the Python parser
    same_as: dict[str, list[str]] = shapes.pop("same_as")
    context: dict[int, list[str]] = shapes.pop("context")
    longest = {name: {"max_position_embeddings": tokens} for tokens, names in context.items() for name in names}
    return {name: shapes[shape] | longest.get(name, {}) for shape, names in same_as.items() for name in names}


def weights_count(model: ModelConfig, config: Config, cache_folder: Path) -> int | None:
    """Number of parameters in the model's safetensors files, by their headers or their index; None without these."""
    folder = folder_of(model.path)
    try:
        if os.path.isdir(folder):
            return sum(_numbers_in(file) for file in folder.glob("model*.safetensors")) or None
        index = _in_cache(*_at(model), INDEX, cache_folder) or from_hub(*_at(model), INDEX)
        said: Config = {} if isinstance(index, str) else index["metadata"]
        return int(said["total_parameters"] if "total_parameters" in said else said["total_size"] // _width_of(config))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _numbers_in(file: Path) -> int:
    """Number of parameters in a safetensors file, from its header (its length in 8 bytes, then JSON)."""
    with file.open("rb") as opened:
        header = _parsed(opened.read(int.from_bytes(opened.read(8), "little")).decode())
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _width_of(config: Config) -> int:
    """Bytes of one weight."""
    return {"float32": 4, "bfloat16": 2, "float16": 2}[config["dtype"] if "dtype" in config else config["torch_dtype"]]


def _in_folder(model: ModelConfig, folder: Path, key: str, cache_folder: Path) -> Config:
    if model.gguf_file is not None:
        from roles.model_files.conversion import resolve_model  # imports torch and transformers, which read the file

        try:
            folder = resolve_model(model.model_copy(update={"layers": None}), cache_folder)
        except ModelError as error:
            raise ConfigError(f"{key}: {error}") from error
    if is_adapter(folder):
        return _of_base(folder, model, key, cache_folder)
    if not os.path.isfile(folder / "config.json"):
        raise ConfigError(f"{key}.path={model.path} has no config.json; {what_it_is(folder, key)}")
    try:
        return config_json(folder)
    except ModelError as error:
        raise ConfigError(f"{key}.path={model.path}: {error}") from error


def _of_base(folder: Path, model: ModelConfig, key: str, cache_folder: Path) -> Config:
    """Of the model that an adapter changes, which has the same shapes."""
    try:
        base = {"path": base_of(folder), "revision": base_revision(folder), "layers": None}
        return read_config(model.model_copy(update=base), key, cache_folder)
    except ModelError as error:
        raise ConfigError(f"{key}.path={model.path}: {error}") from error
    except UnknownModel as unknown:
        raise UnknownModel(f"{key}.path={model.path} is an adapter, and of its base model: {unknown}") from unknown


def _at(model: ModelConfig) -> tuple[str, str | None]:
    return model.path, model.revision


@cache
def _named(name: str, revision: str | None, cache_folder: Path) -> Config | str:
    """config.json for a name on the hub, or why there is none. Our table comes first: published shapes do not
    change."""
    config = _in_cache(name, revision, "config.json", cache_folder) or known_shapes().get(name)
    if config is not None:
        return config
    answer = from_hub(name, revision, "config.json") if is_hub_name(name) else "no such folder"
    if not isinstance(answer, str):
        return answer
    return (
        f"is not a folder, its config.json is not in the hub's cache on this machine (HF_HOME), and the hub did not "
        f"give it ({answer}); put its config.json in a folder and name that, set HF_HOME to a cache that has it, or "
        f"use one of the {len(known_shapes())} known models, such as {', '.join(_nearest(name))}"
    )


def _nearest(name: str) -> list[str]:
    """Known models whose names, without the owner's, are most similar."""
    plain = {known.rpartition("/")[2].lower(): known for known in known_shapes()}
    near = difflib.get_close_matches(name.rpartition("/")[2].lower(), plain, n=4, cutoff=0.0)
    return [plain[other] for other in near]


def _in_cache(name: str, revision: str | None, file: str, cache_folder: Path) -> Config | None:
    """A file of a hub model downloaded to this machine: in the hub's cache (HF_HOME, HF_HUB_CACHE) or the run's."""
    from huggingface_hub import try_to_load_from_cache

    for place in (None, str(cache_folder)):
        with suppress(ValueError, OSError):  # the name is no hub name, or the file is broken
            found = try_to_load_from_cache(name, file, cache_dir=place, revision=revision)
            if isinstance(found, str):
                return _parsed(Path(found).read_text(encoding="utf-8"))
    return None


def from_hub(name: str, revision: str | None, file: str) -> Config | str:
    """One small file from the hub; or why it does not come."""
    text, missing = file_text(name, file, revision)
    return missing or _parsed(text)


def _cut(config: Config, model: ModelConfig, key: str) -> Config:
    """The configuration with only the first `model.layers` layers."""
    name = next((name for name in LAYER_KEYS if name in config), None)
    if name is None:
        raise ConfigError(f"{key}.layers={model.layers}, but the config.json of {model.path} names no number of layers")
    if model.layers is not None and model.layers > config[name]:
        raise ConfigError(f"{key}.layers={model.layers}, but the model {model.path} has {config[name]}; use fewer")
    kinds = config.get("layer_types")
    return {**config, name: model.layers, **({"layer_types": kinds[: model.layers]} if kinds else {})}


def _parsed(text: str) -> Config:
    config = json.loads(text)
    if not isinstance(config, dict):
        raise ValueError("it is no JSON object")
    return config
