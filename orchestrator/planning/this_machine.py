"""Resources and speed of the planning machine, for runs without a GPU."""

from __future__ import annotations

import time
from functools import cache

import psutil

from cluster.config import PoolConfig
from cluster.estimate.memory import GIB

WIDTH = 768
ROUNDS = 5


def as_pool(gpus: int) -> PoolConfig:
    """A pool of one node like this machine, with `gpus` cards."""
    return PoolConfig(nodes=1, gpus_per_node=gpus, host_memory_gib=psutil.virtual_memory().total / GIB)


def operations_per_s(dtype: str) -> float:
    """Operations per second of all cores in matrix products, from a short measurement."""
    return _core(dtype) * (psutil.cpu_count(logical=False) or 1)


@cache
def _core(dtype: str) -> float:
    import torch  # takes seconds, and plans for GPUs do not need it

    matrix, threads = torch.ones(WIDTH, WIDTH, dtype=getattr(torch, dtype)), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.mm(matrix, matrix)
        seconds = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            torch.mm(matrix, matrix)
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 2 * WIDTH**3 / min(seconds)
