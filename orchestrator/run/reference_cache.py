"""Numbers of a frozen model that are kept on the disk under a hash of all that they depend on.

A file is believed only if it was written whole, for the same hash: it says its own, and a checksum of its numbers.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from roles.batch import Sequences
from roles.durable import replace_durably

REFERENCES = "reference-logprobs"
"""In `model_cache`."""


def content_key(model: str, sequences: Sequences) -> str:
    """A hash of a model, said by its own hash, and of all that it is asked."""
    asked = {f.name: getattr(sequences, f.name).contiguous() for f in fields(sequences)}
    return hashlib.sha256(model.encode() + save(asked)).hexdigest()


def cached(folder: Path, key: str, count: int) -> Tensor | None:
    """float32 `[count]`: what was kept under `key`; None if nothing was, or the file is not what was written."""
    try:
        with safe_open(_file(folder, key), "pt") as file:
            said, numbers = file.metadata(), file.get_tensor("logprobs")
    except (OSError, SafetensorError):
        return None
    whole = said == _facts(key, numbers) and numbers.dtype == torch.float32 and numbers.shape == (count,)
    return numbers if whole else None


def keep(folder: Path, key: str, numbers: Tensor) -> None:
    """Keep float32 numbers under `key`, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    content = save({"logprobs": numbers.contiguous()}, metadata=_facts(key, numbers))
    replace_durably(_file(folder, key), content)


def _file(folder: Path, key: str) -> Path:
    return folder / f"{key}.safetensors"


def _facts(key: str, numbers: Tensor) -> dict[str, str]:
    return {"key": key, "sha256": hashlib.sha256(numbers.contiguous().numpy().tobytes()).hexdigest()}
