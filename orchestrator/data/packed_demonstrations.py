"""Demonstrations one behind the other, without padding: rows of tokens flow in, some of them, padded, flow out.

A run holds the rows of its pre-training loss from its first step to its last, and needs a few of them in each.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from roles.shares import Demonstrations

PACKED = "packed "
"""How the hashes begin."""


@dataclass(frozen=True, slots=True)
class PackedDemonstrations:
    """Five bytes a token. Made by `packed`.

    Example: `packed([[5, 6, 2], [5, 2]], [[False, True, True], [False, True]], pad=0)` has
        token_ids = [5, 6, 2, 5, 2]
        trained   = [0, 1, 1, 0, 1]
        begins    = [0, 3, 5]
    """

    token_ids: Tensor
    """int32 `[tokens]`."""
    trained: Tensor
    """bool `[tokens]`."""
    begins: Tensor
    """int64 `[rows + 1]`: the place of each row's first token, and the number of all tokens."""
    pad: int
    """The token that fills rows up."""
    digest: str
    """A hash of all tokens, and of which of them are trained on."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.begins) - 1

    def select(self, rows: Sequence[int]) -> Demonstrations:
        """These rows in this order, right-padded to the longest of them."""
        wanted = torch.tensor(rows)
        begins, ends = self.begins[wanted], self.begins[wanted + 1]
        places = [slice(*place) for place in zip(begins.tolist(), ends.tolist(), strict=True)]
        token_ids = pad_sequence([self.token_ids[place] for place in places], True, self.pad).long()
        trained = pad_sequence([self.trained[place] for place in places], True, False)
        return Demonstrations(token_ids, ends - begins, trained, wanted)


def packed(token_ids: Iterable[Sequence[int]], trained: Iterable[Iterable[bool]], pad: int) -> PackedDemonstrations:
    """Rows of tokens, and for each token whether it is trained on; a row's first never is: nothing comes before it."""
    ids, begins = array("i"), [0]
    for row in token_ids:
        ids.extend(row)
        begins.append(len(ids))
    marks = bytearray(chain.from_iterable(trained))
    for begin in begins[:-1]:
        marks[begin] = False
    digest = hashlib.sha256(array("q", begins))
    for part in (ids, marks):
        digest.update(part)
    flat = torch.frombuffer(ids, dtype=torch.int32), torch.frombuffer(marks, dtype=torch.bool)
    return PackedDemonstrations(*flat, torch.tensor(begins), pad, f"{PACKED}{digest.hexdigest()}")
