"""What Ray has no public way for: a node of its own that listens on this machine alone, and its end without a wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from ray._private import ray_constants
from ray._private import worker as ray_worker

from cluster.ranks.hangs import within
from cluster.ranks.host_memory import kill_tree

LEAVE_S = 30.0
"""Seconds in which Ray must let go."""


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
    """Have Ray kill the processes that it has started here, and theirs: SIGTERM does not end them, and Ray would wait
    for each."""
    for process in _started_here():
        process.terminate = partial(kill_tree, process.pid)


def ended(leave: Callable[[], None]) -> None:
    """Leave Ray, with `leave`. Its own processes may hang or have ended: then those that were started here are killed,
    and no error of theirs hides the run's own."""
    started = _started_here()
    try:
        return within(LEAVE_S, leave)
    except Exception:
        for process in started:
            kill_tree(process.pid)
    until = time.monotonic() + LEAVE_S
    while ray.is_initialized() and time.monotonic() < until:  # `leave` goes on
        time.sleep(0.1)


def _started_here() -> list[Any]:
    """The processes that Ray has started here, as `subprocess` knows them."""
    started = ray_worker._global_node.all_processes.values() if ray_worker._global_node else []
    return [info.process for infos in started for info in infos]
