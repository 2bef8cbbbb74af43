"""Rows of a batch → ranks, micro-batches and packed token streams. Pure.

The driver and the engines call `balance` and `micro_batches` with token counts; the models run on `Packed` streams, in
which the sequences of one micro-batch stand one after the other without padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True, slots=True)
class Packed:
    """The sequences of one micro-batch in one stream, without padding."""

    token_ids: Tensor
    """int64 `[tokens]`."""
    position_ids: Tensor
    """int64 `[tokens]`: 0, 1, 2, … from the beginning of each sequence."""
    starts: Tensor
    """int32 `[sequences + 1]`: where each sequence begins, then the number of tokens (`cu_seqlens`)."""
    longest: int
    """Tokens of the longest sequence; 0 if there is none."""

    def __post_init__(self) -> None:
        if self.token_ids.dim() != 1 or self.token_ids.shape != self.position_ids.shape:
            raise ValueError(
                f"Packed.token_ids {tuple(self.token_ids.shape)} and position_ids {tuple(self.position_ids.shape)} "
                "must both be [tokens]"
            )
        if self.starts.dim() != 1 or not len(self.starts):
            raise ValueError(f"Packed.starts must be [sequences + 1], got shape {tuple(self.starts.shape)}")

    def to(self, device: torch.device) -> Packed:
        """The same on `device`."""
        token_ids, position_ids, starts = (sent(x, device) for x in (self.token_ids, self.position_ids, self.starts))
        return Packed(token_ids, position_ids, starts, self.longest)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which is on the CPU, on `device`. A GPU is not waited for: from memory that is not pinned a copy would
    begin only when the GPU has done all that it was given before."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def in_rows(parts: Iterable[tuple[Sequence[int], Tensor]], rows: Tensor) -> Tensor:
    """`rows` (`[rows]`, on the CPU) with the numbers of each part at its rows; a part without rows is a stand-in. Only
    here a GPU is waited for."""
    for part, numbers in parts:
        if part:
            rows[list(part)] = numbers.cpu()
    return rows


EVEN_TOKENS = 12 * 4096
"""Length of a sequence whose causal attention costs as much as its products with weights: 12 times the hidden size,
here that of an 8B model. (A token and layer take 24 H² operations for the weights, and 4 H for each earlier token.)"""


def balance(lengths: Sequence[int], parts: int) -> list[list[int]]:
    """Rows of each part: counts differ by at most one, work by at most that of the longest row. The work of n tokens
    is n + n² / `EVEN_TOKENS`, because attention is quadratic.

    Rows are dealt in rounds from the longest to the shortest; in each round the part with the least work takes the
    longest row. Deterministic; rows ascend within a part. Parts are empty where there are fewer rows than parts.
    """
    if parts < 1:
        raise ValueError(f"parts={parts} must be at least 1")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    rows: list[list[int]] = [[] for _ in range(parts)]
    work = [0] * parts
    for first in range(0, len(order), parts):
        lightest_first = sorted(range(parts), key=lambda part: (work[part], part))
        for part, row in zip(lightest_first, order[first : first + parts], strict=False):
            rows[part].append(row)
            work[part] += lengths[row] * (EVEN_TOKENS + lengths[row])
    return [sorted(part) for part in rows]


def micro_batches(lengths: Sequence[int], max_tokens: int, at_least: int = 1) -> list[list[int]]:
    """Bins of rows with at most `max_tokens` tokens each; a longer single row is a bin of its own.

    Rows are taken from the longest to the shortest, so that rows of one bin have similar lengths (attention pads inside
    a bin). With `at_least` more than needed, the bins with most tokens are split until there are so many, and bins at
    the end are empty where there are too few rows: every rank of a group must run the same number. Bins come largest
    first, rows ascend within a bin.
    """
    if max_tokens < 1 or at_least < 0:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1 and at_least={at_least} at least 0")
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    bins: list[list[int]] = []
    room = 0
    for row in order:
        if not bins or lengths[row] > room:
            bins.append([])
            room = max_tokens
        bins[-1].append(row)
        room -= lengths[row]

    def tokens(rows: list[int]) -> int:
        return sum(lengths[row] for row in rows)

    while len(bins) < min(at_least, len(order)):
        heaviest = max((b for b in bins if len(b) > 1), key=tokens)
        place = bins.index(heaviest)
        bins[place : place + 1] = _halves(heaviest, lengths)
    bins.sort(key=tokens, reverse=True)
    return [sorted(rows) for rows in bins] + [[] for _ in range(at_least - len(bins))]


def _halves(rows: list[int], lengths: Sequence[int]) -> list[list[int]]:
    """`rows` cut in two non-empty runs with token sums as equal as they can be."""
    total = sum(lengths[row] for row in rows)
    best, cut, before = None, 1, 0
    for place in range(1, len(rows)):
        before += lengths[rows[place - 1]]
        gap = abs(total - 2 * before)
        if best is None or gap < best:
            best, cut = gap, place
    return [rows[:cut], rows[cut:]]


def right_padded(rows: Sequence[Sequence[int]], fill: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of token ids → int64 `[batch, time]`, right-padded with `fill`, and their lengths, int64 `[batch]`."""
    padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
    return padded, torch.tensor([len(row) for row in rows])


def pack(token_ids: Tensor, lengths: Tensor) -> Packed:
    """Right-padded rows → one stream. Of rows on the CPU: on a GPU it would wait for what runs there.

    Args:
        token_ids: int64 `[batch, time]`, right-padded; padding is dropped.
        lengths: int64 `[batch]`.
    """
    valid = _valid(lengths, token_ids.shape[1])
    columns = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
    starts = torch.zeros(len(lengths) + 1, dtype=torch.int32, device=token_ids.device)
    starts[1:] = lengths.cumsum(0)
    return Packed(
        token_ids=token_ids[valid],
        position_ids=columns[valid],
        starts=starts,
        longest=int(lengths.max()) if len(lengths) else 0,
    )


def _valid(lengths: Tensor, width: int) -> Tensor:
    """bool `[batch, width]`: True on tokens, False on padding."""
    return torch.arange(width, device=lengths.device).unsqueeze(0) < lengths.unsqueeze(1)
