"""Rollouts that the driver does not hold: where they are, and what it knows of them. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orchestrator.groups.assignments import contiguous
from roles.rollout_facts import RolloutFacts


@dataclass(frozen=True, slots=True)
class KeeperRows:
    """The rows of a batch that one keeper keeps: `KeeperRows(range(0, 8), [range(0, 4), range(4, 8)])`."""

    rows: range
    """All responses to some neighbouring prompts."""
    engines: Sequence[range]
    """Those of each engine that generates for the keeper."""


@dataclass(frozen=True, slots=True)
class KeptPart:
    """Neighbouring rows that an engine has generated."""

    facts: RolloutFacts
    rollouts: Any
    """Reference to the rows."""
    first: int = 0
    """The batch's number of the first row."""

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def versions(self) -> Tensor:
        """int64 `[rows]`."""
        return self.facts.versions


@dataclass(frozen=True, slots=True)
class KeptRows:
    """All rows of one keeper."""

    keeper: int
    """Its number."""
    parts: Sequence[KeptPart]
    """In the order of the rows."""


def keeper_rows(prompts: int, responses: int, *, engines: int, keepers: int) -> list[KeeperRows]:
    """The rows of each keeper: of `prompts` prompts, as many as its share of the engines. There are at least as many
    prompts as engines, and as many engines as keepers.

    Args:
        responses: to each prompt; they are neighbours.
    """
    made = []
    for own in contiguous(engines, keepers):
        first, end = (prompts * edge // engines * responses for edge in (own.start, own.stop))
        parts = contiguous(end - first, len(own))
        made.append(KeeperRows(range(first, end), [range(first + part.start, first + part.stop) for part in parts]))
    return made
