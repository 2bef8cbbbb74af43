"""A checksum of named tensors that depends on every byte and its place. Tensors on any device in, text out.

Sender and receiver of a push compare it, and it shows whether a frozen model has changed.
"""

from __future__ import annotations

import hashlib
from functools import cache

import torch
from torch import Tensor, nn

VERSION = "2"
"""Begins every digest; raise it when the arithmetic changes."""

ROW = 256
"""Number of words in a row."""

PIECE_ROWS = 2**15
"""Rows (64 MiB) that a GPU multiplies by the weights at a time, which bounds the memory that it takes."""


class Digest:
    """Checksum of named tensors, for both sides of a push: equal if, and but for a rare chance only if, all bytes are.

    A tensor's bytes are read as int64 words, in rows of `ROW`. A row is summed (mod 2^64) with an odd weight for each
    place, which is one pass at memory speed on a CPU and on a GPU; the sums are mixed, and are the words of the next
    round, until one is left. So numbers, rows and blocks that change places are detected. An exchange inside a row of
    two numbers that differ in nothing but the highest bits of their words is not detected. Nothing waits for a GPU
    before `hexdigest`.
    """

    def __init__(self) -> None:
        self._words: dict[str, tuple[str, Tensor]] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Add `tensor` (any shape and dtype) under `name`; a second tensor of that name replaces the first."""
        self._words[name] = (f"{tensor.dtype}{list(tensor.shape)}", _word(tensor.detach()))

    def __len__(self) -> int:
        return len(self._words)

    def by_name(self) -> dict[str, str]:
        """Dtype, shape and checksum of each tensor that was added, by name."""
        if not self._words:
            return {}
        words = torch.stack([word for _, word in self._words.values()]).tolist()
        named = zip(self._words.items(), words, strict=True)
        return {name: f"{kind}{word % 2**64:016x}" for (name, (kind, _)), word in named}

    def hexdigest(self) -> str:
        """The version, and SHA-256 of all entries, sorted by name."""
        sha = hashlib.sha256()
        for name, word in sorted(self.by_name().items()):
            sha.update(f"{name}:{word}\n".encode())
        return f"{VERSION}-{sha.hexdigest()}"


@cache
def _weights(device: torch.device) -> Tensor:
    """`ROW` odd int64 numbers: high bits at random, low bits counting, so that no two differ by a high power of 2."""
    weights = []
    for place in range(ROW):
        mixed = (place + 1) * 0x9E3779B97F4A7C15 % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        weight = mixed // (2 * ROW) * (2 * ROW) + 2 * place + 1
        weights.append(weight - 2**64 if weight >= 2**63 else weight)
    return torch.tensor(weights, device=device)


def _word(tensor: Tensor) -> Tensor:
    """A checksum of `tensor`'s bytes: one int64 number on its device."""
    octets = tensor.contiguous().view(-1).view(torch.uint8)
    if missing := max(8 - octets.numel(), -octets.numel() % 8):
        octets = nn.functional.pad(octets, (0, missing))
    elif octets.storage_offset() % 8:
        octets = octets.clone()
    words = octets.view(torch.int64)
    weights = _weights(words.device)
    while True:
        words = _summed_rows(words, weights)
        if len(words) == 1:
            return words[0]
        words = words ^ words >> 32


def _summed_rows(words: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: `[n]` → `[n / ROW, rounded up]`; the last row may be short."""
    whole = len(words) // ROW * ROW
    rows, rest = words[:whole].view(-1, ROW), words[whole:]
    if words.is_cuda:  # CUDA has no product of integer matrices
        sums = [(piece * weights).sum(1) for piece in rows.split(PIECE_ROWS)]
    else:
        sums = [torch.mv(rows, weights)]
    if len(rest):
        sums.append((rest * weights[: len(rest)]).sum(0, keepdim=True))
    return torch.cat(sums)
