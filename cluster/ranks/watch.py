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
    """Handle of Ray's actor."""
    sentinel: Any
    """Reference of `Worker.watch`: fails when the process dies."""


class Watch:
    """Ranks that are started and not stopped, and those of them whose deaths end a wait: all, or the ones in `only`."""

    def __init__(self) -> None:
        self._ranks: list[Rank] = []
        self._only: Sequence[Rank] | None = None

    @property
    def ranks(self) -> list[Rank]:
        """All ranks that have been started and not stopped."""
        return list(self._ranks)

    @property
    def watched(self) -> list[Rank]:
        """The ranks whose deaths end a wait."""
        return self.ranks if self._only is None else [rank for rank in self._ranks if rank in self._only]

    def add(self, ranks: Sequence[Rank]) -> None:
        """Add ranks that are started."""
        self._ranks += ranks

    def remove(self, ranks: Sequence[Rank]) -> None:
        """Remove ranks before they are stopped, so that their end does not count as a death. Unknown ranks are
        ignored."""
        self._ranks = [rank for rank in self._ranks if rank not in ranks]

    @contextmanager
    def only(self, ranks: Sequence[Rank]) -> Iterator[None]:
        """Context in which only the deaths of `ranks` end a wait: others may have died already."""
        before, self._only = self._only, ranks
        try:
            yield
        finally:
            self._only = before


STARTED = Watch()
"""The watch over all ranks that this process has started."""
