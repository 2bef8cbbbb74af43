"""torch's profiler in a rank's process, on the thread that does its work."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class RankProfiler:
    """The profiler of one rank."""

    def __init__(self) -> None:
        self._running: Any = None

    def begin(self) -> None:
        """Record from now on."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        cards = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._running = profile(activities=[ProfilerActivity.CPU, *cards])
        self._running.__enter__()

    def end(self, path: Path) -> None:
        """Record no more, and write the file; nothing if it is not recording."""
        running, self._running = self._running, None
        if running is not None:
            running.__exit__(None, None, None)
            path.parent.mkdir(parents=True, exist_ok=True)
            running.export_chrome_trace(str(path))
