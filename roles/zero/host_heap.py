"""Bounds the host memory that a process keeps without using it, and gives it back to the system.

On CPU every micro-batch has another length. oneDNN compiles kernels for each length (0.3 to 0.6 MiB for one matrix
product), and both oneDNN and PyTorch keep a thousand of them. They lie among the activations in the C library's heap,
which therefore has holes that the next activations do not fit: a trainer of 135 million parameters in bfloat16 grew by
0.2 to 0.4 GiB in a PPO step of 48 samples.
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache
from typing import Any

COMPILED_KERNELS = "128"
"""Number of kernels that each of the two libraries keeps. A micro-batch needs about thirty."""

TRIM_COST_SHARE = 0.02
"""Largest share of a process's time spent searching for free pages; one search of 5 GiB takes 0.1 to 0.2 s."""


def bound_kernel_caches() -> None:
    """Let the libraries keep few compiled kernels; values already set are kept. Call it before the first product."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", COMPILED_KERNELS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", COMPILED_KERNELS)  # PyTorch's own cache of oneDNN's kernels


class HostHeap:
    """The C library's heap of this process, which `give_back` trims."""

    def __init__(self) -> None:
        self._rests_until = 0.0

    def give_back(self) -> None:
        """Return free pages to the system, also those between pages in use. Does nothing without glibc."""
        if time.monotonic() < self._rests_until or _libc() is None:
            return
        began = time.thread_time()
        _libc().malloc_trim(0)
        self._rests_until = time.monotonic() + (time.thread_time() - began) / TRIM_COST_SHARE


HEAP = HostHeap()
"""The heap of this process."""


@cache
def _libc() -> Any:
    """The C library of this process; None if it is not glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
