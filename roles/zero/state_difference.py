"""Where two files of saved state part: two paths flow in; the name of the first part that differs flows out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from roles.errors import RoleError

NOTHING = object()


def state_difference(first: Path, second: Path) -> str | None:
    """The first part of two files, by name, that is not the same bit for bit, such as `weight/0/embed.weight: 3 of 512
    numbers, by at most 0.0625`; None if all parts are the same, also where the files' bytes differ.

    Reads safetensors and JSON; of other files it says only that their bytes differ. RoleError for a file that is not
    what its name says.
    """
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": _tensors, ".json": _json}
    read = readers.get(first.suffix)
    if read is None:
        return None if first.read_bytes() == second.read_bytes() else "other bytes"
    return next(_differences(read(first), read(second), ""), None)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RoleError(f"{file} is not JSON: {error}") from error


def _tensors(file: Path) -> Any:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise RoleError(f"{file} is no safetensors file, and nothing in it was run: {error}") from error


def _differences(first: Any, second: Any, name: str) -> Iterator[str]:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        found = _of_tensors(first, second)
        if found is not None:
            yield f"{name}: {found}"
    elif isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in dict.fromkeys((*first, *second)):
            yield from _differences(first.get(key, NOTHING), second.get(key, NOTHING), f"{name}.{key}".lstrip("."))
    elif _is_list(first) and _is_list(second):
        for place, (one, other) in enumerate(zip_longest(first, second, fillvalue=NOTHING)):
            yield from _differences(one, other, f"{name}[{place}]")
    elif type(first) is not type(second) or (first != second and repr(first) != repr(second)):
        yield f"{name}: {_short(first)} and {_short(second)}"


def _of_tensors(first: Tensor, second: Tensor) -> str | None:
    """What differs between two tensors of any shapes and dtypes; None if they have the same bits."""
    kinds = [f"{tensor.dtype}{list(tensor.shape)}".removeprefix("torch.") for tensor in (first, second)]
    if kinds[0] != kinds[1]:
        return " and ".join(kinds)
    if torch.equal(_bytes(first), _bytes(second)):
        return None
    width = max(first.element_size(), 1)
    moved = (_bytes(first) != _bytes(second)).view(-1, width).any(dim=1)
    apart = (first.double() - second.double()).abs().max() if not first.is_complex() else (first - second).abs().max()
    return f"{int(moved.sum())} of {first.numel()} numbers, by at most {float(apart):.3g}"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.new_zeros(0, dtype=torch.uint8)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _short(value: Any) -> str:
    text = "nothing" if value is NOTHING else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
