"""Which commits of the models on the hub a run reads: a configuration flows in, names with commits flow out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from orchestrator.config.base import BaseConfig
from orchestrator.config.schema import key_of
from roles.config.models import ModelConfig
from roles.model_files.folders import folder_of


def hub_commits(config: BaseConfig) -> dict[str, str]:
    """Key of a model → `owner/name@commit`, of those that are not folders here. They have been fetched; the hub is not
    asked."""
    found = {}
    for key, model in _models(config, ""):
        if not os.path.isdir(folder_of(model.path)):
            commit = _cached_commit(model)
            if commit is not None:
                found[key] = f"{model.path}@{commit}"
    return found


def _models(section: BaseModel, key: str) -> Iterator[tuple[str, ModelConfig]]:
    if isinstance(section, ModelConfig):
        yield key, section
    for name, field in type(section).model_fields.items():
        value: Any = getattr(section, name)
        inner = value.items() if isinstance(value, dict) else [("", value)]
        for member, one in inner:
            if isinstance(one, BaseModel):
                yield from _models(one, ".".join(filter(None, (key, key_of(name, field), str(member)))))


def _cached_commit(model: ModelConfig) -> str | None:
    """The commit of a model in the hub's cache on this machine; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except (ValueError, OSError):  # no hub name, or no cache
        return None
    snapshot = re.search(r"/snapshots/([0-9a-f]+)/", file) if isinstance(file, str) else None
    return snapshot[1] if snapshot else None
