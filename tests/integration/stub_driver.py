"""A driver for tests of the clean-up: starts a group, says so, waits for ever. Argument: a folder for logs."""

from __future__ import annotations

import sys
from pathlib import Path

from ray._private import worker as ray_worker

from cluster.config import LocalPlacement
from cluster.placement.plan import RoleNeed, plan
from cluster.ranks.role_group import RoleGroup
from cluster.runtime.fork_server import Imports
from cluster.runtime.ray_cluster import RayCluster
from tests.integration.stub_role import Stub


def main() -> None:
    wanted = plan(LocalPlacement(), [RoleNeed("actor", workers=1)])
    imports = Imports(("torch",), {})
    with RayCluster(wanted, deadline_s=60, object_store_gib=0.1, imports=imports) as cluster:
        group = RoleGroup.start("actor", Stub, [("a",)], cluster.places("actor"), log_dir=Path(sys.argv[1]))
        group.ready(60)
        group.call(Stub.start_child).result(20)
        print("started", ray_worker._global_node.get_session_dir_path(), flush=True)
        group.call(Stub.hang, True).result(300)


if __name__ == "__main__":
    main()
