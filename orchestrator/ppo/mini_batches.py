"""The rows of each optimizer step, and the rows that each rank needs for its part of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import torch

from orchestrator.data.demonstrations import PtxSource
from roles.packing import balance
from roles.shares import ActorExperience, E, RankShare


def share_out(experience: E, *, epochs: int, mini_batches: int, seed: int, ranks: int) -> list[RankShare[E]]:
    """The share of each rank. A row that a rank trains on in several epochs is in its share once.

    There is no optimizer step without a trained token: its gradient is 0, but Adam's momentum would move the weights.
    """
    schedule = {"epochs": epochs, "mini_batches": mini_batches, "seed": seed, "ranks": ranks}
    planned = optimizer_steps(experience.lengths.tolist(), **schedule)
    learned = experience.response_mask.any(1).tolist()
    taught = [any(learned[row] for rows in step for row in rows) for step in zip(*planned, strict=True)]
    return [_share(experience, list(compress(steps, taught))) for steps in planned]


def optimizer_steps(
    lengths: Sequence[int], *, epochs: int, mini_batches: int, seed: int, ranks: int
) -> list[list[list[int]]]:
    """Rows of the batch that each rank trains on: `[rank][optimizer step]`, `epochs * mini_batches` steps.

    Every epoch is a new permutation of the whole batch, cut into equal mini-batches; each of those is divided among the
    ranks by token counts. Which rows make an optimizer step depends on the seed, never on the number of ranks.

    Args:
        lengths: tokens of each row.

    Raises:
        ValueError: the rows do not divide into mini-batches, or a mini-batch has fewer rows than there are ranks.
    """
    rows = len(lengths)
    if rows % mini_batches:
        raise ValueError(f"mini_batches={mini_batches} does not divide the {rows} samples of the batch; use a divisor")
    size = rows // mini_batches
    if size < ranks:
        raise ValueError(
            f"a mini-batch of {size} samples cannot be shared out over {ranks} ranks; "
            f"use at most {rows // ranks} mini-batches, or more samples per step"
        )
    generator = torch.Generator().manual_seed(seed)
    shares: list[list[list[int]]] = [[] for _ in range(ranks)]
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator).tolist()
        for first in range(0, rows, size):
            step = sorted(order[first : first + size])
            for rank, part in enumerate(balance([lengths[row] for row in step], ranks)):
                shares[rank].append([step[place] for place in part])
    return shares


def with_pretraining(
    shares: Sequence[RankShare[ActorExperience]], source: PtxSource, count: int
) -> list[RankShare[ActorExperience]]:
    """The shares of all ranks, and beside each optimizer step the next `count` rows of `source`, divided among the
    ranks by token counts."""
    drawn = source.next(count * len(shares[0].steps))
    lengths = drawn.lengths.tolist()
    parts = [
        [[first + place for place in part] for part in balance(lengths[first : first + count], len(shares))]
        for first in range(0, len(drawn), count)
    ]
    return [replace(share, beside=_share(drawn, [step[rank] for step in parts])) for rank, share in enumerate(shares)]


def trained_rows(shares: Sequence[RankShare[E]], epochs: int) -> set[int]:
    """The batch's rows that have a trained token and are in exactly `epochs` optimizer steps of all ranks' shares
    together."""
    turns = Counter[int]()
    for share in shares:
        learned, rows = share.experience.response_mask.any(1).tolist(), share.experience.rows.tolist()
        turns.update(rows[place] for step in share.steps for place in step if learned[place])
    return {row for row, count in turns.items() if count == epochs}


def _share(experience: E, steps: Sequence[Sequence[int]]) -> RankShare[E]:
    rows = sorted({row for step in steps for row in step})
    place = {row: position for position, row in enumerate(rows)}
    return RankShare(experience.select(rows), [[place[row] for row in step] for step in steps])
