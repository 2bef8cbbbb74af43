"""A driver whose Ray is what hangs: stops one of Ray's own processes, waits for ranks, leaves.

Arguments: the process's name, a folder for logs.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.config import LocalPlacement
from cluster.errors import DeadlineExceeded
from cluster.placement.plan import RoleNeed, plan
from cluster.ranks.role_group import RoleGroup
from cluster.runtime import local_ray
from cluster.runtime.fork_server import Imports
from cluster.runtime.ray_cluster import RayCluster
from tests.integration.stub_role import Stub

DEADLINE_S = 4.0


def main(victim: str, logs: str) -> None:
    local_ray.LEAVE_S = 5.0
    wanted = plan(LocalPlacement(), [RoleNeed("actor", workers=1)])
    with RayCluster(wanted, deadline_s=60, object_store_gib=0.1, imports=Imports(("torch",), {})) as cluster:
        group = RoleGroup.start("actor", Stub, [("a",)], cluster.places("actor"), log_dir=Path(logs))
        group.ready(120)
        processes = {process.name(): process for process in psutil.Process().children(recursive=True)}
        processes[victim].suspend()
        for what, call in {
            "a small answer": lambda: group.call(Stub.add, 1).result(DEADLINE_S),
            "a large answer": lambda: len(group.call(Stub.make, 8).result(DEADLINE_S)),
            "the use of memory": cluster.usage,
        }.items():
            told(what, call)
        began = time.monotonic()
    print(f"left after {time.monotonic() - began:.1f} s", flush=True)
    os._exit(0)


def told(what: str, call: Callable[[], Any]) -> None:
    began = time.monotonic()
    try:
        call()
        print(f"{what} came after {time.monotonic() - began:.1f} s")
    except DeadlineExceeded as error:
        print(f"{what} did not come within {time.monotonic() - began:.1f} s: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
