"""Which commits of the models on the hub a run reads: a configuration flows in, names with commits flow out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from orchestrator.config.base import BaseConfig
from orchestrator.config.schema import key_of
from roles.config.models import ModelConfig
from roles.errors import ModelError
from roles.model_files.folders import ADAPTER_CONFIG, base_of, base_revision, folder_of, is_adapter


def hub_commits(config: BaseConfig) -> dict[str, str]:
    """Key of a model → `owner/name@commit`, of those that are not folders here; of an adapter also `KEY (base)`, the
    model that it changes. They have been fetched; the hub is not asked."""
    found = {}
    for key, model in _models(config, ""):
        named: ModelConfig | None = model
        while named is not None:
            folder, commit = _fetched(named)
            if commit is not None:
                found[key] = f"{named.path}@{commit}"
            key, named = f"{key} (base)", None if folder is None else _base(folder)
    return found


def _base(folder: Path) -> ModelConfig | None:
    """The model that an adapter in `folder` changes; None for a whole model, and for an adapter that cannot be read."""
    try:
        named = folder_of(base_of(folder)) if is_adapter(folder) else folder
        return None if named == folder else ModelConfig(path=str(named), revision=base_revision(folder))
    except ModelError:
        return None


def _models(section: BaseModel, key: str) -> Iterator[tuple[str, ModelConfig]]:
    if isinstance(section, ModelConfig):
        yield key, section
    for name, field in type(section).model_fields.items():
        value: Any = getattr(section, name)
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for member, one in inner:
            if isinstance(one, BaseModel):
                yield from _models(one, ".".join(filter(None, (key, key_of(name, field), str(member)))))


def _fetched(model: ModelConfig) -> tuple[Path | None, str | None]:
    """The folder of a model on this machine and, if the hub's cache has it, its commit; None for what is not there."""
    from huggingface_hub import try_to_load_from_cache

    folder = folder_of(model.path)
    if os.path.isdir(folder):
        return folder, None
    for name in ("config.json", ADAPTER_CONFIG):
        try:
            file = try_to_load_from_cache(model.path, name, revision=model.revision)
        except (ValueError, OSError):  # no hub name, or no cache
            return None, None
        if isinstance(file, str) and (snapshot := re.search(r"/snapshots/([0-9a-f]+)/", file)):
            return Path(file).parent, snapshot[1]
    return None, None
