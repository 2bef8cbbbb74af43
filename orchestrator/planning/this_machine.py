"""Resources and speed of the planning machine, for runs without a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import psutil

from cluster.config import PoolConfig
from cluster.estimate.memory import GIB

WIDTH = 768
COPIED = 2**27
"""Bytes that are copied to measure the memory: more than any cache holds."""
ROUNDS = 5


def as_pool(gpus: int) -> PoolConfig:
    """A pool of one node like this machine, with `gpus` cards."""
    return PoolConfig(nodes=1, gpus_per_node=gpus, host_memory_gib=psutil.virtual_memory().total / GIB)


def operations_per_s(dtype: str) -> float:
    """Operations per second of all cores in matrix products, from a short measurement."""
    return _core(dtype) * (psutil.cpu_count(logical=False) or 1)


@cache
def memory_per_s() -> float:
    """Bytes that all cores read and write per second, from a short measurement."""
    import torch

    there = torch.ones(COPIED // 4)
    here = torch.empty_like(there)
    return 2 * COPIED / _least_s(lambda: here.copy_(there))


@cache
def _core(dtype: str) -> float:
    import torch  # takes seconds, and plans for GPUs do not need it

    matrix, threads = torch.ones(WIDTH, WIDTH, dtype=getattr(torch, dtype)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return 2 * WIDTH**3 / _least_s(lambda: torch.mm(matrix, matrix))
    finally:
        torch.set_num_threads(threads)


def _least_s(work: Callable[[], object]) -> float:
    """Least seconds of some rounds of `work`, after a first one that does not count."""
    work()
    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
