"""The position of each parameter in the buckets of a push. Pure: sender and receiver compute the same positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

BUCKET_BYTES = 64 * 2**20
ALIGNMENT = 64
"""Bytes; each tensor starts at a multiple of this in its bucket, so that it can be read as any dtype."""


@dataclass(frozen=True, slots=True)
class BucketEntry:
    """Position of one parameter in a bucket."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """Offset from the beginning of the bucket, in bytes."""

    @property
    def size(self) -> int:
        """Size of the parameter, in bytes."""
        return prod(self.shape) * self.dtype.itemsize

    def view(self, bucket: Tensor) -> Tensor:
        """The parameter inside `bucket` (uint8, flat)."""
        return bucket[self.start : self.start + self.size].view(self.dtype).view(self.shape)


def plan_buckets(
    parameters: Iterable[tuple[str, torch.dtype, Sequence[int]]], bucket_bytes: int = BUCKET_BYTES
) -> list[list[BucketEntry]]:
    """Assign parameters to buckets in order, as many as fit; a parameter larger than a bucket gets one of its own."""
    buckets: list[list[BucketEntry]] = []
    end = 0
    for name, dtype, shape in parameters:
        slot = BucketEntry(name, dtype, tuple(shape), end)
        if not buckets or end + slot.size > bucket_bytes:
            slot = BucketEntry(name, dtype, tuple(shape), 0)
            buckets.append([])
        buckets[-1].append(slot)
        end = -(-(slot.start + slot.size) // ALIGNMENT) * ALIGNMENT
    return buckets
