"""The rows of each optimizer step, and the rows that each rank needs for its part of them. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any, NamedTuple

import torch

from orchestrator.config.ppo import PpoConfig
from orchestrator.data.demonstrations import PtxSource
from roles.packing import balance
from roles.shares import ActorExperience, Demonstrations, E, RankShare


class Home(NamedTuple):
    """Rows of the batch, and the ranks that train on them."""

    rows: range
    ranks: range


@dataclass(frozen=True, slots=True)
class ShareRows:
    """The rows of the batch that one rank trains on: `ShareRows([0, 2, 5], [[0, 1], [2], [1], [0, 2]])`."""

    rows: list[int]
    """In rising order."""
    steps: list[list[int]]
    """For each optimizer step, positions in `rows`."""


def schedule_of(ppo: PpoConfig, seed: int) -> dict[str, Any]:
    """Arguments of `share_out` and `share_rows`, all but the ranks."""
    return {"epochs": ppo.epochs, "mini_batches": ppo.mini_batches, "seed": seed}


def share_out(experience: E, *, epochs: int, mini_batches: int, seed: int, ranks: int) -> list[RankShare[E]]:
    """The share of each rank. A row that a rank trains on in several epochs is in its share once."""
    schedule: dict[str, Any] = {"epochs": epochs, "mini_batches": mini_batches, "seed": seed, "ranks": ranks}
    learned = experience.response_mask.any(1).tolist()
    planned = share_rows(experience.lengths.tolist(), learned, **schedule)
    return [RankShare(experience.select(own.rows), own.steps) for own in planned]


def share_rows(
    lengths: Sequence[int],
    learned: Sequence[bool],
    *,
    epochs: int,
    mini_batches: int,
    seed: int,
    ranks: int,
    homes: Sequence[Home] = (),
) -> list[ShareRows]:
    """The rows of each rank's share.

    There is no optimizer step without a trained token: its gradient is 0, but Adam's momentum would move the weights.

    Args:
        lengths: tokens of each row.
        learned: whether each row has a trained token.
        homes: see `optimizer_steps`.
    """
    schedule: dict[str, Any] = {"epochs": epochs, "mini_batches": mini_batches, "seed": seed, "ranks": ranks}
    planned = optimizer_steps(lengths, **schedule, homes=homes)
    taught = [any(learned[row] for rows in step for row in rows) for step in zip(*planned, strict=True)]
    return [_positions(list(compress(steps, taught))) for steps in planned]


def optimizer_steps(
    lengths: Sequence[int], *, epochs: int, mini_batches: int, seed: int, ranks: int, homes: Sequence[Home] = ()
) -> list[list[list[int]]]:
    """Rows of the batch that each rank trains on: `[rank][optimizer step]`, `epochs * mini_batches` steps.

    Every epoch is a new permutation of the whole batch, cut into equal mini-batches; each of those is divided among the
    ranks by token counts. Which rows make an optimizer step depends on the seed, never on the number of ranks.

    Args:
        lengths: tokens of each row.
        homes: rows that only some ranks train on, of all rows and ranks; none: all ranks on any row.

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
            for home in homes or [Home(range(rows), range(ranks))]:
                own = step[bisect_left(step, home.rows.start) : bisect_left(step, home.rows.stop)]
                for rank, part in zip(home.ranks, balance([lengths[row] for row in own], len(home.ranks)), strict=True):
                    shares[rank].append([own[place] for place in part])
    return shares


def with_pretraining(
    shares: Sequence[RankShare[ActorExperience]], source: PtxSource, count: int
) -> list[RankShare[ActorExperience]]:
    """The shares of all ranks, and beside each optimizer step the next `count` rows of `source`."""
    beside = pretraining_shares(source, count, steps=len(shares[0].steps), ranks=len(shares))
    return [replace(share, beside=own) for share, own in zip(shares, beside, strict=True)]


def pretraining_shares(source: PtxSource, count: int, *, steps: int, ranks: int) -> list[RankShare[Demonstrations]]:
    """Of each rank, for every optimizer step its part of the next `count` rows of `source`, divided by token counts."""
    drawn = source.next(count * steps)
    lengths = drawn.lengths.tolist()
    parts = [
        [[first + place for place in part] for part in balance(lengths[first : first + count], ranks)]
        for first in range(0, len(drawn), count)
    ]
    planned = [_positions([step[rank] for step in parts]) for rank in range(ranks)]
    return [RankShare(drawn.select(own.rows), own.steps) for own in planned]


def trained_rows(shares: Sequence[RankShare[E]], epochs: int) -> set[int]:
    """The batch's rows that have a trained token and are in exactly `epochs` optimizer steps of all ranks' shares
    together."""
    turns = Counter[int]()
    for share in shares:
        learned, rows = share.experience.response_mask.any(1).tolist(), share.experience.rows.tolist()
        turns.update(rows[place] for step in share.steps for place in step if learned[place])
    return {row for row, count in turns.items() if count == epochs}


def planned_rows(shares: Sequence[ShareRows], learned: Sequence[bool], epochs: int) -> set[int]:
    """As `trained_rows`, of shares whose rows are elsewhere. `learned`: of the batch, as in `share_rows`."""
    turns = Counter(share.rows[place] for share in shares for step in share.steps for place in step)
    return {row for row, count in turns.items() if count == epochs and learned[row]}


def _positions(steps: Sequence[Sequence[int]]) -> ShareRows:
    """A share from the batch's rows of each of its steps."""
    rows = sorted({row for step in steps for row in step})
    place = {row: position for position, row in enumerate(rows)}
    return ShareRows(rows, [[place[row] for row in step] for step in steps])
