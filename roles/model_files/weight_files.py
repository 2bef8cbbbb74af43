"""The weights of a Hugging Face folder by name, from the headers of its files. No number of a weight is read, and torch
is loaded for `pytorch_model.bin` alone.

A folder flows in; the files that transformers would open, and what is in them, flow out, or a ModelError.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from roles.errors import ModelError
from roles.model_files.config_json import quantised
from roles.text.json_files import read_json_object

OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".npz")
"""Endings of files that other programs keep weights in, or under other names."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The files that transformers looks for, in its order. An index names several files."""

UNQUANTISED = ("F64", "F32", "F16", "BF16", "I64", "BOOL")
"""Dtypes of weights that are not quantised, and of positions and masks."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a folder, such as a reward model's head: `Stored(Path("model.safetensors"), (1, 64), "F32")`."""

    file: Path
    shape: tuple[int, ...]
    dtype: str = "F32"
    """As safetensors calls it."""


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of `folder`."""
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise ModelError(_no_weights(folder))
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
    lost = [shard for shard in shards if not os.path.isfile(folder / shard)]
    if lost:
        raise ModelError(f"the folder lacks {len(lost)} of {len(shards)} weight files, {lost[0]} first; fetch it anew")
    return [folder / shard for shard in shards]


def _no_weights(folder: Path) -> str:
    for name in WEIGHTS:
        if os.path.lexists(folder / name):
            return f"{name} is not a file, or a link that leads to none; fetch it anew"
    others = sorted(file.name for file in folder.iterdir() if file.suffix in OTHER_WEIGHTS)
    if others:
        shown = ", ".join(others[:3])
        return (
            f"the folder has no weights that transformers reads ({WEIGHTS[0]} or {WEIGHTS[2]}), but {shown}; name the "
            "folder that `save_pretrained` wrote, or convert them"
        )
    return f"the folder has no weights ({WEIGHTS[0]} or {WEIGHTS[2]}); name a folder with weights, or fetch them"


def stored_weights(folder: Path) -> dict[str, Stored]:
    """Name → what is stored under it; such as `{"score.weight": Stored(…)}`."""
    return {name: tensor for file in weight_files(folder) for name, tensor in _stored_in(file).items()}


def refuse_quantised(stored: Mapping[str, Stored]) -> None:
    """ModelError where a weight is stored in small whole numbers, or in numbers of fewer than 16 bits."""
    for name, tensor in stored.items():
        is_weight = len(tensor.shape) > 1 or name.endswith((".weight", ".bias"))
        if is_weight and tensor.dtype not in UNQUANTISED and not is_mask(name, tensor.shape):
            raise ModelError(quantised(f"{name} is {tensor.dtype}"))


def is_mask(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a constant that older versions of GPT-2, GPT-J and others saved with their weights."""
    kind = name.rpartition(".")[2]
    return kind in ("masked_bias", "causal_mask") or (kind == "bias" and len(shape) == 4)


def read_header(file: Path) -> dict[str, Any]:
    """Name → dtype, shape and place of each tensor of a safetensors file (its length in 8 bytes, then JSON).

    ModelError where the file is not as long as its header says (a download may have been cut, or be a Git LFS pointer),
    or where a tensor's place, shape or dtype cannot be.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            header_size = int.from_bytes(opened.read(8), "little")
            header = opened.read(header_size) if header_size < size else b""
    except OSError as error:
        raise ModelError(f"{file.name} cannot be read: {error.strerror}; correct its permissions") from None
    try:
        tensors = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        expected = 8 + header_size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise ModelError(f"{file.name} is not a safetensors file (a Git LFS pointer?); fetch it anew") from None
    if size != expected:
        raise ModelError(f"{file.name} has {size} bytes, but its header says {expected}; fetch it anew")
    try:
        with safe_open(file, framework="np"):
            return tensors
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise ModelError(f"{file.name} has a broken header ({reason}); fetch it anew") from None


def _stored_in(file: Path) -> Mapping[str, Stored]:
    if file.suffix == ".safetensors":
        return {name: Stored(file, tuple(entry["shape"]), entry["dtype"]) for name, entry in read_header(file).items()}
    import torch

    try:
        tensors = torch.load(file, map_location="meta", weights_only=True)
        return {name: Stored(file, tuple(tensor.shape), _dtype(tensor)) for name, tensor in tensors.items()}
    except Exception as error:  # unpickling fails in many ways
        raise ModelError(
            f"{file.name} is not a file of PyTorch weights alone ({type(error).__name__}); fetch it anew, or save it "
            f"as {WEIGHTS[0]}"
        ) from None


def _dtype(tensor: Any) -> str:
    """The dtype of a torch tensor, as safetensors calls it."""
    names = {"torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16"}
    return names.get(str(tensor.dtype), str(tensor.dtype))


def _listed(index: Path) -> list[str]:
    """The files that an index names."""
    listed = read_json_object(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(f"{index.name} has no readable weight_map (tensor → file); fetch it anew")
    return sorted(set(listed.values()))
