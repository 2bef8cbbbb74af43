"""Which rows make up each optimizer step. Pure."""

from __future__ import annotations

import torch

from roles.batch import Experience
from roles.packing import balance


def mini_batches(
    experience: Experience, *, epochs: int, mini_batches: int, seed: int, ranks: int
) -> list[list[Experience]]:
    """What each rank trains on: `[rank][optimizer step]`, `epochs * mini_batches` steps.

    Every epoch is a fresh permutation of the whole batch, cut into equal mini-batches; each of those is shared out over
    the ranks by token counts. Which rows make an optimizer step depends on the seed, never on the number of ranks.

    Raises:
        ValueError: the rows do not divide into mini-batches, or a mini-batch has fewer rows than there are ranks.
    """
    rows = len(experience)
    if rows % mini_batches:
        raise ValueError(f"mini_batches={mini_batches} does not divide the {rows} samples of the batch; use a divisor")
    size = rows // mini_batches
    if size < ranks:
        raise ValueError(
            f"a mini-batch of {size} samples cannot be shared out over {ranks} ranks; "
            f"use at most {rows // ranks} mini-batches, or more samples a step"
        )
    generator = torch.Generator().manual_seed(seed)
    lengths = experience.lengths.tolist()
    shards: list[list[Experience]] = [[] for _ in range(ranks)]
    for _ in range(epochs):
        order = torch.randperm(rows, generator=generator).tolist()
        for first in range(0, rows, size):
            step = sorted(order[first : first + size])
            for rank, part in enumerate(balance([lengths[row] for row in step], ranks)):
                shards[rank].append(experience.select([step[place] for place in part]))
    return shards
