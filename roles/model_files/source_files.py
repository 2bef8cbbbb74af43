"""The files that a model of the configuration is made from: of its folder, and of an adapter's base."""

from __future__ import annotations

from pathlib import Path

from roles.config.models import ModelConfig
from roles.model_files.conversion import source_folder
from roles.model_files.folders import base_of, base_revision, files_of_model, folder_of, is_adapter

BASE = "base of the adapter"


def source_files(config: ModelConfig) -> dict[str, Path]:
    """Name → file, of all that decides what is loaded. ModelError if there is no such model."""
    folder = source_folder(config.path, config.revision)
    if config.gguf_file is not None:
        return {config.gguf_file: folder / config.gguf_file}
    files = {file.name: file for file in files_of_model(folder)}
    if is_adapter(folder):
        base = source_files(ModelConfig(path=str(folder_of(base_of(folder))), revision=base_revision(folder)))
        files |= {f"{BASE}/{name}": file for name, file in base.items()}
    return files
