"""The weights that are served: a folder that a run may replace flows in, folders that stay as they are flow out."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from orchestrator.errors import TetrarchError

REPLACED_S = 30.0
"""Seconds within which a run has replaced the weights."""
SETTLED_POLL_S = 0.1
PREFIX = "weights-"
HELD = "held"
"""File in the folder of copies that is locked as long as they are served; it names the machine."""


class ServedWeights:
    """Context with copies of a run's policy, hard links where the file system has them: an engine that is started again
    loads what is served, not what a run has written since. The copies are removed at the end; those of a command that
    was killed by the next one in the same place."""

    def __init__(self, written: Path, place: Path) -> None:
        """`written`: where a run writes its policy. `place`: the folder for the copies' own folder."""
        self._written, self._place = written, place
        self._folder: Path | None = None
        self._held: IO[str] | None = None
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._held is not None:
            self._held.close()

    def take(self) -> Path:
        """A copy of the policy as it is now. TetrarchError if it goes on changing for REPLACED_S."""
        if self._folder is None:
            self._folder = self._own_folder()
        self._taken += 1
        copy, until = self._folder / str(self._taken), time.monotonic() + REPLACED_S
        while True:
            try:
                before = self._state()
                shutil.copytree(self._written, copy, copy_function=_link)
                if self._state() == before:
                    return copy
            except OSError as error:  # a run replaces it just now
                if time.monotonic() > until:
                    raise TetrarchError(f"{self._written} cannot be read: {error}") from error
            shutil.rmtree(copy, ignore_errors=True)
            if time.monotonic() > until:
                raise TetrarchError(f"{self._written} has not stopped changing for {REPLACED_S:g} s")
            time.sleep(SETTLED_POLL_S)

    def _own_folder(self) -> Path:
        """A new folder, which is held from the moment that it has its name; others that nobody holds are removed."""
        self._place.mkdir(parents=True, exist_ok=True)
        here = socket.gethostname()  # locks may be those of one machine
        for left in self._place.glob(f"{PREFIX}*/{HELD}"):
            with suppress(OSError), left.open("r+") as file:  # somebody holds it, or has just removed it
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if file.read() == here:
                    shutil.rmtree(left.parent, ignore_errors=True)
        new = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=self._place))
        self._held = (new / HELD).open("w")
        self._held.write(here)
        self._held.flush()
        with suppress(OSError):  # a file system without locks: then nobody removes it
            fcntl.flock(self._held, fcntl.LOCK_EX)
        return new.rename(new.with_name(new.name.removeprefix(".")))

    def keep_newest(self) -> None:
        """Remove all copies but the newest: no engine reads another one any more."""
        assert self._folder is not None
        for copy in self._folder.iterdir():
            if copy.name != str(self._taken):
                shutil.rmtree(copy, ignore_errors=True)

    def _state(self) -> tuple[int, int]:
        """Changes when the folder is another one, or has other names in it."""
        found = self._written.stat()
        return found.st_ino, found.st_mtime_ns


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # such as of another file system, or one without links
        shutil.copy2(source, target)
