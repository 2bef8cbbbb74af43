"""Commands of ours that run as processes of their own: they end with the process that has started them, and get time to
save their last step."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from cluster.runtime.fork_server import DEATH_SIGNAL

END_S = 120.0
"""Seconds in which a command ends that was told to, or whose starter was killed."""

Tell = Callable[[str], None]
"""Says to the user what happens."""


def last_lines(log: Path, count: int) -> str:
    """The last `count` lines that a command has said."""
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])


def end_process(process: subprocess.Popen[bytes], within_s: float | None = None) -> None:
    """Let the command end by itself (a run saves its last step), within END_S seconds unless others are given."""
    process.terminate()
    try:
        process.wait(END_S if within_s is None else within_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def ends_with(parent: int) -> Callable[[], None]:
    """What a new process calls so that it gets SIGTERM when `parent` dies, however that dies."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return ask
