"""The host memory that a process keeps without using it: bounded, and given back to the system.

On CPU every micro-batch has another length. oneDNN compiles kernels for each length (0.3 to 0.6 MiB for one matrix
product), and it and PyTorch keep a thousand each. They lie among the activations in the C library's heap, which
therefore has holes that the next activations do not fit: a trainer of 135 million parameters in bfloat16 grew by 0.2 to
0.4 GiB in a PPO step of 48 samples.
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache
from typing import Any

COMPILED_KERNELS = "128"
"""How many each of the two libraries keeps. A micro-batch needs some thirty."""

TRIM_COST_SHARE = 0.02
"""Largest share of a process's time in which it looks for free pages; it takes 0.1 to 0.2 s in a heap of 5 GiB."""


def bound_kernel_caches() -> None:
    """Let the libraries keep few compiled kernels. Call it before the first product; a value already set is kept."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", COMPILED_KERNELS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", COMPILED_KERNELS)  # PyTorch's own, of what it asks oneDNN for


class HostHeap:
    """The C library's heap of this process."""

    def __init__(self) -> None:
        self._rests_until = 0.0

    def give_back(self) -> None:
        """Return free pages to the system, those between pages in use too. Does nothing without glibc."""
        if time.monotonic() < self._rests_until or _libc() is None:
            return
        began = time.thread_time()
        _libc().malloc_trim(0)
        self._rests_until = time.monotonic() + (time.thread_time() - began) / TRIM_COST_SHARE


HEAP = HostHeap()
"""This process's."""


@cache
def _libc() -> Any:
    """This process's C library; None if it is not glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
