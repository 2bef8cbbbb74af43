"""The weights of a Hugging Face folder by name, from the headers of its files. No number of a weight is read, and torch
is loaded for `pytorch_model.bin` alone.

A folder flows in; the files that transformers would open, and what is in them, flow out, or a ModelError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roles.errors import ModelError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files that transformers looks for, in its order. An index names several files."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a folder, such as `Stored(Path("model.safetensors"), (1, 64))`, the head of a reward model."""

    file: Path
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of `folder`."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise ModelError(
            f"the folder has no weights ({WEIGHTS[0]} or {WEIGHTS[2]}); name a folder with weights, or fetch them"
        )
    first = found[0]
    listed = _listed(folder / WEIGHTS[1]) if folder / WEIGHTS[1] in found else []
    if first.name == WEIGHTS[0] and set(listed) - {first.name}:
        raise ModelError(
            f"the folder has two sets of weights, {WEIGHTS[0]} and those of {WEIGHTS[1]}, and programs differ in which "
            "they read; remove the one that is not meant"
        )
    if first.suffix != ".json":
        return [first]
    shards = _listed(first)
    lost = [shard for shard in shards if not (folder / shard).is_file()]
    if lost:
        raise ModelError(f"the folder lacks {len(lost)} of {len(shards)} weight files, {lost[0]} first; fetch it anew")
    return [folder / shard for shard in shards]


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Name → stored tensor, such as `{"score.weight": Stored(…)}`."""
    return {name: tensor for file in weight_files(folder) for name, tensor in _stored_in(file).items()}


def read_header(file: Path) -> dict[str, Any]:
    """Name → dtype, shape and position of each tensor of a safetensors file (its length in 8 bytes, then JSON).

    ModelError if the file is not as long as its header says: the download was cut, or it is a Git LFS pointer.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        header_size = int.from_bytes(opened.read(8), "little")
        header = opened.read(header_size) if header_size < size else b""
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        expected = 8 + header_size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise ModelError(f"{file.name} is not a safetensors file (a Git LFS pointer?); fetch it anew") from None
    if size != expected:
        raise ModelError(f"{file.name} has {size} bytes, but its header says {expected}; fetch it anew")
    return tensors


def _stored_in(file: Path) -> Mapping[str, Stored]:
    if file.suffix == ".safetensors":
        return {name: Stored(file, tuple(entry["shape"])) for name, entry in read_header(file).items()}
    import torch

    try:
        tensors = torch.load(file, map_location="meta", weights_only=True)
        return {name: Stored(file, tuple(tensor.shape)) for name, tensor in tensors.items()}
    except Exception as error:  # unpickling fails in many ways
        raise ModelError(f"{file.name} is not a file of PyTorch weights ({error}); fetch it anew") from None


def _listed(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index.name} has no readable weight_map ({error!r}); fetch it anew") from None
