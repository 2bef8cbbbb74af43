"""What Ray has no public way for: a node of its own that listens on this machine alone, and its end without a wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ray._private import ray_constants
from ray._private import worker as ray_worker

from cluster.ranks.host_memory import kill_tree


@contextmanager
def on_loopback() -> Iterator[None]:
    """Context in which Ray takes 127.0.0.1 as the address of a node that it starts, so that nothing listens beyond."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def kill_at_once() -> None:
    """Kill the processes that Ray has started here, and theirs: SIGTERM does not end them, and Ray would wait for
    each."""
    started = ray_worker._global_node.all_processes.values() if ray_worker._global_node else []
    for info in [info for infos in started for info in infos]:
        info.process.terminate = partial(kill_tree, info.process.pid)
