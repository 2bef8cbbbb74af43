"""Rows that can be selected, split and concatenated: what all batches have in common, and checks of their tensors.

A batch is a frozen dataclass whose fields have one entry per row: tensors `[batch]` or `[batch, time]`, lists, mappings
of lists, or another batch. Tensors `[batch, time]` are right-padded; `lengths` says how much of each row is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from types import EllipsisType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

FOUR_BYTES = torch.iinfo(torch.int32)
Array = np.ndarray[Any, Any]
B = TypeVar("B", bound="Batch")
_NAMES: dict[type[Any], tuple[str, ...]] = {}
"""Type → names of its fields: looking for them takes longer than to cut a few rows."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that can be selected, split and concatenated.

    Pickled, its tensors are arrays, which Ray copies to and from its object store in one piece and with several
    threads (a tensor goes through Python's own pickle first). They are on the CPU, without gradients, and of types that
    numpy has. Of `[batch, time]` only what is read travels: integers as far as `lengths`, numbers where `response_mask`
    is True; all else arrives as 0. A bool takes a bit, an integer four bytes if all fit, and zeros take nothing.
    """

    def __len__(self) -> int:
        return len(getattr(self, _names(type(self))[0]))

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: getattr(self, name) for name in _names(type(self))}
        read = _Read(own.get("lengths"), own.get("response_mask"))
        packed = {name: _Packed.of(value, read) if isinstance(value, Tensor) else value for name, value in own.items()}
        return _unpacked, (type(self), packed)

    def select(self, rows: Sequence[int]) -> Self:
        """The rows `rows`, in that order; token tensors are cut to the longest row that is left."""
        index, lengths = torch.as_tensor(rows, dtype=torch.long), _lengths(self)
        width = int(lengths[index].max()) if lengths is not None and len(index) else None
        return self._with(lambda value: _select(value, rows, index, width))

    def split(self, parts: Iterable[Sequence[int]]) -> list[Self]:
        """One batch for each list of row numbers; their tensors are views of one copy."""
        rows = [list(part) for part in parts]
        ordered, ends = self.select([row for part in rows for row in part]), accumulate(map(len, rows))
        return [ordered._between(end - len(part), end) for part, end in zip(rows, ends, strict=True)]

    def _between(self, first: int, end: int) -> Self:
        """The rows from `first` up to `end`."""
        lengths = _lengths(self)
        width = int(lengths[first:end].max()) if lengths is not None and end > first else None
        return self._with(lambda value: _slice(value, first, end, width))

    def _with(self, change: Callable[[Any], Any]) -> Self:
        """This batch with `change` of each field, which leaves what was checked when the batch was made."""
        return _made(type(self), {name: change(getattr(self, name)) for name in _names(type(self))})

    @classmethod
    def concatenate(cls, batches: Sequence[Self], pad_token_id: int = 0) -> Self:
        """The rows of all batches in order; shorter rows are padded on the right (`token_ids` with `pad_token_id`)."""
        if not batches:
            raise ValueError(f"cannot concatenate zero batches of {cls.__name__}")
        joined = {}
        for name in _names(cls):
            parts = [getattr(b, name) for b in batches]
            if isinstance(parts[0], Batch):
                joined[name] = type(parts[0]).concatenate(parts, pad_token_id)
            else:
                joined[name] = _join(parts, pad_token_id if name == "token_ids" else 0)
        return cls(**joined)


def check_tokens(batch: Any) -> None:
    """ValueError unless `token_ids`, `lengths` and `response_mask` fit together."""
    shape = batch.token_ids.shape
    if len(shape) != 2:
        raise ValueError(f"{type(batch).__name__}.token_ids must be [batch, time], got shape {tuple(shape)}")
    check_shape(batch, "token_ids", shape, torch.int64)
    check_shape(batch, "lengths", shape[:1], torch.int64)
    check_shape(batch, "response_mask", shape, torch.bool)
    if shape[0] and int(batch.lengths.max()) > shape[1]:
        raise ValueError(
            f"{type(batch).__name__}.lengths has {int(batch.lengths.max())}, more than the {shape[1]} columns"
        )
    padding = torch.arange(shape[1], device=batch.lengths.device) >= batch.lengths.unsqueeze(1)
    if bool((batch.response_mask & padding).any()):
        raise ValueError(f"{type(batch).__name__}.response_mask is True on padding: it reaches beyond `lengths`")


def check_texts(batch: Any) -> None:
    """ValueError unless `prompts`, `responses` and each of `columns` have one entry per row."""
    columns = {f"columns[{name!r}]": column for name, column in batch.columns.items()}
    for name, rows in {"prompts": batch.prompts, "responses": batch.responses, **columns}.items():
        if len(rows) != len(batch.lengths):
            raise ValueError(f"{type(batch).__name__}.{name} has {len(rows)} entries for {len(batch.lengths)} rows")


def check_shape(batch: Any, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    """ValueError unless the tensor `name` has this shape and type."""
    tensor = getattr(batch, name)
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise ValueError(
            f"{type(batch).__name__}.{name} must be {dtype} {tuple(shape)}, got {tensor.dtype} {tuple(tensor.shape)}"
        )


def put_back(numbers: Tensor, mask: Tensor) -> Tensor:
    """`[batch, time]`: `numbers`, `[n]`, in the n places where the mask is True, row after row, and 0 elsewhere."""
    whole = np.zeros(mask.shape, numbers.numpy().dtype)
    whole[mask.numpy()] = numbers.numpy()
    return torch.from_numpy(whole)


class _Read(NamedTuple):
    """What is read of the tensors `[batch, time]` of a batch; None: all."""

    lengths: Tensor | None
    mask: Tensor | None

    def places(self, shape: Sequence[int], dtype: np.dtype[Any]) -> Array | EllipsisType:
        """Index of what is read of a tensor."""
        if self.lengths is None or len(shape) != 2:
            return ...
        if self.mask is not None and dtype.kind == "f":
            return self.mask.numpy()
        lengths = self.lengths.numpy()
        return ... if lengths.min(initial=shape[1]) == shape[1] else np.arange(shape[1]) < lengths[:, None]


@dataclass(frozen=True, slots=True)
class _Packed:
    """A tensor while it is pickled."""

    values: Array | None
    """Those that are read, row after row, or all; of bools the bits of all. None: all are 0."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, tensor: Tensor, read: _Read) -> _Packed:
        whole = tensor.numpy()
        if whole.dtype == bool:
            values = np.packbits(whole)
        else:
            values = np.ascontiguousarray(whole[read.places(whole.shape, whole.dtype)])
            if values.dtype == np.int64 and _fits(values):
                values = values.astype(np.int32)
        return cls(values if values.view(np.uint8).any() else None, whole.shape, whole.dtype)

    def tensor(self, read: _Read) -> Tensor:
        """A copy: what Ray hands out is shared memory that nobody may write to."""
        if self.dtype == bool and self.values is not None:
            bits = np.unpackbits(self.values, count=math.prod(self.shape))
            return torch.from_numpy(bits.view(bool).reshape(self.shape))
        whole = np.zeros(self.shape, self.dtype)
        if self.values is not None:
            whole[read.places(self.shape, self.dtype)] = self.values
        return torch.from_numpy(whole)


def _fits(values: Array) -> bool:
    """Whether all are integers of four bytes."""
    if not values.size:
        return True
    low, high = torch.from_numpy(values).aminmax()
    return FOUR_BYTES.min <= int(low) and int(high) <= FOUR_BYTES.max


def _unpacked(made: type[Batch], packed: Mapping[str, Any]) -> Batch:
    everything = _Read(None, None)
    first = {name: packed[name].tensor(everything) for name in ("lengths", "response_mask") if name in packed}
    read = _Read(first.get("lengths"), first.get("response_mask"))
    return _made(made, {name: x.tensor(read) if isinstance(x, _Packed) else x for name, x in packed.items()})


def _made(made: type[B], values: Mapping[str, Any]) -> B:
    """A batch of values that are known to be right: of a batch that was checked when it was made."""
    batch = object.__new__(made)
    for name, value in values.items():
        object.__setattr__(batch, name, value)
    return batch


def _names(made: type[Batch]) -> tuple[str, ...]:
    """Of its fields."""
    if made not in _NAMES:
        _NAMES[made] = tuple(f.name for f in fields(made))
    return _NAMES[made]


def _lengths(batch: Batch) -> Tensor | None:
    """How much of each row is read, in `batch` or in a batch inside it; None where nothing is padded."""
    for name in _names(type(batch)):
        value = getattr(batch, name)
        if name == "lengths" or isinstance(value, Batch):
            return value if isinstance(value, Tensor) else _lengths(value)
    return None


def _select(value: Any, rows: Sequence[int], index: Tensor, width: int | None) -> Any:
    """Cut before the copy: that leaves less to copy."""
    if isinstance(value, Batch):
        return value.select(rows)
    if isinstance(value, Tensor):
        return value[:, :width][index] if value.dim() == 2 else value[index]
    if isinstance(value, dict):
        return {key: [column[row] for row in rows] for key, column in value.items()}
    return [value[row] for row in rows]


def _slice(value: Any, first: int, end: int, width: int | None) -> Any:
    if isinstance(value, Batch):
        return value._between(first, end)
    if isinstance(value, Tensor):
        return value[first:end, :width] if value.dim() == 2 else value[first:end]
    return {key: column[first:end] for key, column in value.items()} if isinstance(value, dict) else value[first:end]


def _join(parts: list[Any], fill: int) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        if first.dim() == 1:
            return torch.cat(parts)
        width = max(p.shape[1] for p in parts)
        return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1]), value=fill) for p in parts])
    if isinstance(first, dict):
        if any(part.keys() != first.keys() for part in parts):
            raise ValueError(f"batches with different columns cannot be joined: {[sorted(part) for part in parts]}")
        return {key: [value for part in parts for value in part[key]] for key in first}
    return [value for part in parts for value in part]
