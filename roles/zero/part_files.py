"""Files of a training state: parts of named parameters as safetensors. Each rank writes one file; ranks of any number
and any ZeRO stage read from all of them what they hold. Nothing in a file is run.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from roles.durable import HashedFile, write_durably
from roles.errors import RoleError

DTYPES = {torch.int64: "I64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""Their names in safetensors files."""
WEIGHT = "weight"
"""The kind of a part that holds the parameter itself."""


class PartName(NamedTuple):
    """What consecutive numbers in a file are. Example: `exp_avg/4096/model.norm.weight`."""

    kind: str
    """`weight`, or another state of the same shape."""
    start: int
    """Place of the first of them in the flattened parameter."""
    parameter: str

    def __str__(self) -> str:
        return "/".join(map(str, self))

    @classmethod
    def of(cls, text: str) -> PartName:
        """Read what `str` gives; ValueError for another text."""
        kind, start, parameter = text.split("/", 2)
        return cls(kind, int(start), parameter)


def write_parts(path: Path, parts: Mapping[PartName, Tensor]) -> str:
    """Write parts (each `[n]`, on any device) to a safetensors file, and wait until it is on the disk; its hash."""
    ordered = sorted(parts.items(), key=lambda part: -part[1].itemsize)  # so that each begins at a multiple of its size
    header: dict[str, Any] = {}
    begin = 0
    for name, tensor in ordered:
        end = begin + tensor.nbytes
        header[str(name)] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def write(file: HashedFile) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            file.write(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)

    return write_durably(path, write)


class PartFiles:
    """The files of all ranks in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[tuple[str, str], list[tuple[int, Any]]] = {}
        for file in sorted(folder.glob("*.safetensors")):
            try:
                opened = safe_open(file, "pt")
                for key in opened.keys():  # noqa: SIM118 (it is no dictionary)
                    name = PartName.of(key)
                    self._parts.setdefault((name.kind, name.parameter), []).append((name.start, opened.get_slice(key)))
            except (SafetensorError, ValueError) as error:
                raise RoleError(f"{file} is no file of a checkpoint, and nothing in it was run: {error}") from error

    def first(self, kind: str, parameter: str) -> float | None:
        """The first number of that kind of a parameter; None if there is none."""
        parts = self._parts.get((kind, parameter))
        return float(parts[0][1][0]) if parts else None

    def read(self, kind: str, parameter: str, start: int, into: Tensor) -> None:
        """Fill `into` (`[n]`, any device) with the numbers from `start` on; RoleError if they are not all there."""
        end, found = start + len(into), 0
        for first, part in self._parts.get((kind, parameter), []):
            last = first + part.get_shape()[0]
            begin, stop = max(start, first), min(end, last)
            if begin < stop:
                into[begin - start : stop - start].copy_(part[begin - first : stop - first])
                found += stop - begin
        if found != len(into):
            raise RoleError(
                f"{self._folder} holds {found} of the {len(into)} numbers of {parameter} ({kind}) from {start} on; "
                "resume from a whole checkpoint of the same model"
            )
