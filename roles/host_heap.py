"""What a process of a role keeps of the host's memory without using it: bounded, and given back to the system.

On CPU the roles compute micro-batches of ever new lengths. oneDNN compiles kernels for each of them (some 0.6 MB for a
matrix product) and keeps a thousand; and since these lie among the activations, the C library's heap has holes of all
sizes, which the next activations do not fit. Each role called here grows by GiB without it. Called by `roles.engine`
and `roles.process_group`, and in vLLM's workers by `roles.rollout_worker`.
"""

from __future__ import annotations

import ctypes
import os
import time
from functools import cache
from typing import Any

COMPILED_KERNELS = "128"
"""Of each kind. A micro-batch needs some thirty, and the next one has another length."""

COST_SHARE = 0.02
"""Of a process's time: the heap is looked through for free pages no more often than this allows."""


def bound_kernel_caches() -> None:
    """Keep few compiled kernels; to be called before the first product. A value already set is kept."""
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", COMPILED_KERNELS)
    os.environ.setdefault("LRU_CACHE_CAPACITY", COMPILED_KERNELS)  # PyTorch's own, of what it asks oneDNN for


class HostHeap:
    """The C library's heap of this process."""

    def __init__(self) -> None:
        self._rests_until = 0.0

    def give_back(self) -> None:
        """Return free pages to the system, those between pages in use too. Does nothing where only glibc could."""
        began = time.monotonic()
        if began < self._rests_until or _libc() is None:
            return
        _libc().malloc_trim(0)
        ended = time.monotonic()
        self._rests_until = ended + (ended - began) / COST_SHARE


HEAP = HostHeap()
"""This process's."""


@cache
def _libc() -> Any:
    """This process's C library; None if it is not glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "malloc_trim") else None
