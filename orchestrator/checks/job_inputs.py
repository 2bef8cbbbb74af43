"""What a job reads must be where it runs: in the uploaded working directory, or at an absolute path that nodes share.

A configuration flows in, with relative paths that start at the working directory (the current one); nothing flows out,
or a ConfigError that names every key, value and fix.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from orchestrator.config.base import BaseConfig
from orchestrator.config.schema import inputs_in
from orchestrator.data.dataset_rows import is_hub_name
from orchestrator.errors import ConfigError
from roles.config.models import ModelConfig

SHARED = "use an absolute path on storage that all nodes share"


def check_job_inputs(config: BaseConfig, left_out: Callable[[Path], bool]) -> None:
    """Every file and folder that the configuration names by a relative path is uploaded. `left_out` says of a path in
    the working directory that it is not."""
    found = [
        f"{key}={path} {wrong}; {SHARED}"
        for key, path in inputs_in(config, config.folder_key)
        if not os.path.isabs(path) and (wrong := _wrong(path, left_out))
    ]
    converted = next(_converted(config), None)
    if converted and config.placement.type != "local" and not os.path.isabs(config.model_cache):
        found.append(
            f"model_cache={config.model_cache} is relative, and the model that is converted there ({converted}) would "
            f"be on one node; {SHARED}"
        )
    if found:
        raise ConfigError("\n".join(found))


def _wrong(path: str, left_out: Callable[[Path], bool]) -> str | None:
    """Why a job would not find `path`; None if it would."""
    root = Path.cwd()
    whole = Path(os.path.normpath(root / path))
    if not whole.exists():
        hub = is_hub_name(path) and not path.endswith(".py")  # a hub has models and data sets, but no functions
        return None if hub else f"does not exist (relative paths start at the working directory, {root})"
    if not whole.is_relative_to(root):
        return f"is outside the working directory {root}, which is what a job sees"
    for file in [whole] if whole.is_file() else sorted(file for file in whole.rglob("*") if file.is_file()):
        if left_out(file):
            inside = "" if file == whole else f" ({file.relative_to(whole)})"
            return f"is not uploaded{inside}: .gitignore or .rayignore names it or a folder around it"
    return None


def _converted(value: Any, key: str = "") -> Iterator[str]:
    """Keys of the models that are converted before they are loaded."""
    if isinstance(value, ModelConfig) and (value.gguf_file is not None or value.layers is not None):
        yield key
    elif isinstance(value, BaseModel | dict):
        for name, inner in value if isinstance(value, BaseModel) else value.items():
            yield from _converted(inner, f"{key}.{name}" if key else name)
