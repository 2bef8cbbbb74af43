"""How a process of tests in which Ray has run ends."""

from __future__ import annotations

import atexit
import os
import sys

_STATUS: list[int] = []


def pytest_sessionfinish(exitstatus: int) -> None:
    """Remember what pytest will end with."""
    _STATUS.append(int(exitstatus))


@atexit.register  # before Ray's own, so that it comes after them
def _end() -> None:
    """Leave without the C++ destructors: Ray's threads may crash while these run, as in
    `orchestrator.commands.app.main`."""
    if _STATUS:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_STATUS[-1])
