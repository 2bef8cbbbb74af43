"""The ranks that this process has started: a wait for any of them ends when one of them dies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.ranks.identity import Identity


@dataclass(frozen=True, slots=True, eq=False)
class Rank:
    """A handle on one worker; may be sent to other processes."""

    identity: Identity
    worker: Any
    """Ray's actor handle."""
    sentinel: Any
    """Reference of `Worker.watch`: fails when the process dies."""


class Watch:
    """Ranks that are started and not stopped, and whose deaths count: those of all, or `only` of some."""

    def __init__(self) -> None:
        self._ranks: list[Rank] = []
        self._only: Sequence[Rank] | None = None

    @property
    def ranks(self) -> list[Rank]:
        """All that are started and not stopped."""
        return list(self._ranks)

    @property
    def watched(self) -> list[Rank]:
        """Those whose deaths end a wait."""
        return self.ranks if self._only is None else [rank for rank in self._ranks if rank in self._only]

    def add(self, ranks: Sequence[Rank]) -> None:
        """To be called when they are started."""
        self._ranks += ranks

    def remove(self, ranks: Sequence[Rank]) -> None:
        """To be called before they are stopped, so that their end is no death; ranks that are not there are ignored."""
        self._ranks = [rank for rank in self._ranks if rank not in ranks]

    @contextmanager
    def only(self, ranks: Sequence[Rank]) -> Iterator[None]:
        """For the waits inside only the deaths of `ranks` count: others may have died already."""
        before, self._only = self._only, ranks
        try:
            yield
        finally:
            self._only = before


STARTED = Watch()
"""The watch over all ranks that this process has started."""
