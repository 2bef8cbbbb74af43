"""Data sets by name or path. A DatasetConfig flows in, rows flow out; or a ConfigError that names key, value and mend.

Called by `orchestrator.prompts`, the reward training and the checks at the door.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestrator.config import DatasetConfig
from orchestrator.errors import ConfigError

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
"""File ending → the builder of `datasets` that reads it."""


def load_rows(config: DatasetConfig, key: str) -> Any:
    """The rows, as a `datasets.Dataset`, at least one. `key` is the section's key path, for errors."""
    dataset = _load(config, key)
    if config.limit is not None:
        dataset = dataset.select(range(min(config.limit, len(dataset))))
    if not len(dataset):
        raise ConfigError(f"{key}.path={config.path} is empty; it needs at least one row")
    return dataset


def is_hub_name(path: str) -> bool:
    """True if `path` could be a hub's `owner/name`: nothing here has that name, nor could it be a mistyped file."""
    shaped = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path) is not None
    first = Path(path).parts[0] if shaped else ""
    mistyped = Path(path).suffix in {*BUILDERS, ".gguf", ".csv", ".txt"} or ("/" in path and Path(first).exists())
    return shaped and not mistyped and not Path(path).exists()


def check_source(config: DatasetConfig, key: str) -> None:
    """The file or directory must be there, and be of a kind that `datasets` reads."""
    path, where = Path(config.path), f"{key}.path={config.path}"
    if path.is_file() and path.suffix not in BUILDERS:
        raise ConfigError(f"{where}: files end in {', '.join(BUILDERS)}; convert it, or name a directory")
    if path.is_file() and not path.stat().st_size:
        raise ConfigError(f"{where} is empty; it needs at least one row")
    if not path.exists() and not is_hub_name(config.path):
        raise ConfigError(f"{where} does not exist (relative paths start at the current directory, {Path.cwd()})")


def _load(config: DatasetConfig, key: str) -> Any:
    check_source(config, key)
    import datasets

    datasets.disable_progress_bars()
    path, where = Path(config.path), f"{key}.path={config.path}"
    try:
        if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            saved = datasets.load_from_disk(str(path))
            return saved[config.split] if isinstance(saved, datasets.DatasetDict) else saved
        if path.is_file():
            builder = BUILDERS[path.suffix]
            return datasets.load_dataset(builder, data_files={"train": str(path)}, split=config.split)
        return datasets.load_dataset(config.path, config.name, split=config.split)
    except Exception as error:  # datasets raises whatever its readers raise
        raise ConfigError(f"{where} (split {config.split}) cannot be loaded: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: `datasets` wraps what its readers say."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
