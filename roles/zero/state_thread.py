"""A thread that writes a copy of the training state while the rank goes on: one at a time."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class StateThread:
    """Runs what writes a state, and keeps its answer until it is asked for."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)  # the thread starts with the first work
        self._work: Future[dict[str, str]] | None = None

    def begin(self, write: Callable[[], dict[str, str]]) -> None:
        """Run `write` in the thread. The work before it must be over."""
        assert self._work is None or self._work.done(), "the state before this one is still being written"
        self._work = self._pool.submit(write)

    def answer(self) -> dict[str, str] | None:
        """What `write` has returned, as often as it is asked for: the other ranks may not be ready yet. None while it
        runs. Raises its error."""
        assert self._work is not None, "nothing was written"
        return self._work.result() if self._work.done() else None
