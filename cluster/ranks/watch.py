"""The ranks that this process has started: a wait for any of them ends when one of them dies."""

from __future__ import annotations

import threading
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
    pid: Any = None
    """Reference of the process id."""
    node_id: str = ""
    """Ray's id of its node."""


class Watch:
    """Ranks that are started and not stopped, and those of them whose deaths end any wait: all but the replaceable
    ones, or only the ones in `only`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ranks: list[Rank] = []
        self._replaceable: set[Rank] = set()
        self._only: frozenset[Rank] | None = None

    @property
    def ranks(self) -> list[Rank]:
        """All ranks that have been started and not stopped."""
        return list(self._ranks)

    @property
    def watched(self) -> list[Rank]:
        """The ranks whose deaths end a wait, also a wait for others."""
        counted = [rank for rank in self._ranks if rank not in self._replaceable]
        return counted if self._only is None else [rank for rank in counted if rank in self._only]

    @property
    def replaceable(self) -> frozenset[Rank]:
        """The ranks whose deaths end only the waits for themselves."""
        return frozenset(self._replaceable)

    def add(self, ranks: Sequence[Rank], *, replaceable: bool = False) -> None:
        """Add ranks that are started."""
        with self._lock:
            self._ranks += ranks
            if replaceable:
                self._replaceable.update(ranks)

    def remove(self, ranks: Sequence[Rank]) -> None:
        """Remove ranks before they are stopped, so that their end does not count as a death. Unknown ranks are
        ignored."""
        with self._lock:
            self._ranks = [rank for rank in self._ranks if rank not in ranks]
            self._replaceable.difference_update(ranks)

    @contextmanager
    def only(self, ranks: Sequence[Rank]) -> Iterator[None]:
        """Context in which only the deaths of `ranks` end a wait: others may have died already."""
        before, self._only = self._only, frozenset(ranks)
        try:
            yield
        finally:
            self._only = before


STARTED = Watch()
"""The watch over all ranks that this process has started."""
