"""Writes files in a thread while the run goes on.

Functions that write a file flow in; files flow out in the same order, or the first error, once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import FileNotWritten

QUEUED = 4
"""Files that may wait to be written, the one under way included: what they are made of is held in memory."""


class FileWriter:
    """One thread that writes files."""

    def __init__(self, deadline_s: float) -> None:
        """`deadline_s`: seconds in which a file that is waited for must be written."""
        self._deadline_s = deadline_s
        self._changed = threading.Condition()
        self._left: deque[tuple[Path, Callable[[Path], None]]] = deque()
        self._error: FileNotWritten | None = None
        self._ended = self._stuck = False
        self._thread: threading.Thread | None = None

    def put(self, path: Path, write: Callable[[Path], None]) -> None:
        """Have `write` write a file in the thread; waits while `QUEUED` others are not written."""
        with self._changed:
            self._wait(lambda: len(self._left) < QUEUED)
            self._left.append((path, write))
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="files", daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until every file has been written, or has failed."""
        with self._changed:
            self._wait(lambda: not self._left)

    def check(self) -> None:
        """Raise the first error since the last call. Does not wait."""
        with self._changed:
            error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Write what is left, and end the thread; the first error is raised, unless it has been raised before."""
        self.wait()
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self.check()

    def _wait(self, done: Callable[[], bool]) -> None:
        """Wait under the lock. After one deadline that passed, no other is waited for."""
        if not self._changed.wait_for(done, 0 if self._stuck else self._deadline_s) and not self._stuck:
            self._stuck = True
            limit = f"within {self._deadline_s:g} s"
            self._failed(f"{self._left[0][0]} was not written {limit}; look at its disk, or raise deadlines.save_s")

    def _failed(self, message: str, cause: Exception | None = None) -> None:
        """Remember an error, if it is the first; under the lock."""
        if self._error is None:
            self._error = FileNotWritten(message)
            self._error.__cause__ = cause

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or self._ended)
                if not self._left:
                    return
                path, write = self._left[0]
            failure: Exception | None = None
            try:
                write(path)
            except Exception as raised:
                failure = raised
            with self._changed:
                if failure is not None:
                    what = failure.strerror if isinstance(failure, OSError) and failure.strerror else repr(failure)
                    self._failed(f"{path} could not be written: {what}; go on with --resume when it can be", failure)
                self._left.popleft()
                self._changed.notify_all()
