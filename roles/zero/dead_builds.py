"""Compiling an optimizer at its first use: locks that killed processes have left do not hold up the others.

torch lets one process compile, and all others wait until its file `lock` is gone. The file of a process that was killed
stays, also for later runs and, in a shared home folder, for other nodes.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BUILD_S = 600.0
"""Seconds after which whoever compiles is dead: DeepSpeed's optimizers take one to two minutes."""
LOOK_EVERY_S = 5.0


@contextmanager
def without_dead_builds(build_s: float = BUILD_S, every_s: float = LOOK_EVERY_S) -> Iterator[None]:
    """Context in which locks older than `build_s` seconds are removed, so that whoever waits for one compiles."""
    over = threading.Event()

    def look() -> None:
        while True:
            remove_dead(build_s)
            if over.wait(every_s):
                return

    thread = threading.Thread(target=look, name="dead-builds", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def remove_dead(build_s: float) -> None:
    """Remove the locks that are older than `build_s` seconds."""
    from torch.utils.cpp_extension import get_default_build_root  # imports setuptools

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")):
        with suppress(FileNotFoundError):  # whoever compiled has ended meanwhile
            if time.time() - lock.stat().st_mtime > build_s:
                print(f"{lock} is older than {build_s:g} s: whoever compiled there was killed; compiling anew")
                lock.unlink()
