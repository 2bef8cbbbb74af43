"""Ray is started, attached to, refused and ended as promised."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.config import GroupConfig, GroupsPlacement, LocalPlacement, PlacedGroup, PoolConfig
from cluster.errors import NodeLost, PlacementError, RankFailure
from cluster.placement.plan import RoleNeed, plan
from cluster.ranks.role_group import RoleGroup
from cluster.runtime import ray_cluster
from cluster.runtime.granted_nodes import NOTICED_S
from cluster.runtime.living_nodes import living_nodes
from cluster.runtime.ray_cluster import RayCluster
from tests.integration.stub_role import Stub

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_driver(tmp_path: Path, how: signal.Signals) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.stub_driver", str(tmp_path)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert driver.stdout is not None
    started, session = driver.stdout.readline().split()
    assert started == "started"
    assert Path(session).parents[1].stat().st_mode & 0o777 == 0o700, "what is inside, Ray opens to everybody"
    family = psutil.Process(driver.pid).children(recursive=True)
    assert any("sleep" in process.name() for process in family)
    if how == signal.SIGKILL:  # two of Ray's own agents notice by themselves, but only after about a minute
        family = [process for process in family if not process.name().endswith("Agent")]
    driver.send_signal(how)
    driver.wait(60)
    assert driver.returncode != 0
    deadline = time.monotonic() + 60
    while left := [process for process in family if _runs(process)]:
        assert time.monotonic() < deadline, f"outlived the driver: {left}"
        time.sleep(0.2)


def test_a_cluster_that_is_too_small_is_refused_before_asking(ray_of_two_nodes: Cluster) -> None:
    wanted = plan(LocalPlacement(actor=GroupConfig(ranks=3, threads=1)), [RoleNeed("actor", gpu=True)])
    began = time.monotonic()
    with pytest.raises(PlacementError) as error, RayCluster(wanted, deadline_s=60, address=ray_of_two_nodes.address):
        pass
    assert time.monotonic() - began < 55, "before the deadline"
    assert "the cluster is too small: asked for planned node 0: 3 CPUs, 3 GPUs (actor: 3 x 1 CPU and 1 GPU)" in str(
        error.value
    )
    assert "having 2 x (2 CPUs, 2 GPUs). Set placement.actor.ranks: 2 (now 3), or add 1 node" in str(error.value)
    assert not ray.is_initialized()


def test_a_busy_cluster_is_waited_for_until_the_deadline(
    ray_of_two_nodes: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[str]()
    address = ray_of_two_nodes.address
    wanted = plan(LocalPlacement(actor=GroupConfig(ranks=2)), [RoleNeed("actor", gpu=True)])
    with RayCluster(wanted, deadline_s=60, address=address, waits=told.append) as cluster:
        assert not any("short of" in text for text in told)
        group = RoleGroup.start("actor", Stub, [("a",), ("b",)], cluster.places("actor"), log_dir=tmp_path)
        group.ready(60)
        assert group.map(Stub.add, [1, 2], 1).result(20) == [2, 3]
        others = ray.util.placement_group([{"CPU": 1.0}] * 2, strategy="STRICT_PACK")
        assert others.wait(60)
        until = time.monotonic() + 60
        while any(node.cpus for node in living_nodes(free=True)):  # Ray says it a moment later
            assert time.monotonic() < until
            time.sleep(0.1)
        cluster._deadline_s = 2
        held, looks = cluster._group, itertools.count()  # a clock that goes on by 0.25 s when it is looked at
        with monkeypatch.context() as patched:
            patched.setattr(ray_cluster, "RAYS_CHOICE_S", 1.0)
            patched.setattr(ray_cluster, "time", SimpleNamespace(monotonic=lambda: 0.25 * next(looks)))
            with pytest.raises(
                PlacementError, match=r"no room within 2 s: .* free are (\w+: 0 CPUs, [02] GPUs(; |\. )){2}"
            ):
                cluster._reserve()
        said = (
            r"waiting for room: planned node 0 \(actor; 2 CPUs, 2 GPUs\) is short of 2 .* \(for [12] s by now, at most "
        )
        assert re.search(said, told[-1])
        ray.util.remove_placement_group(held)
    assert not ray.is_initialized()


def test_an_address_where_no_cluster_is_is_named() -> None:
    wanted = plan(LocalPlacement(), [RoleNeed("actor")])
    with (
        pytest.raises(PlacementError, match=r"no Ray cluster answers at '127.0.0.1:1'.*unset RAY_ADDRESS"),
        RayCluster(wanted, deadline_s=5, address="127.0.0.1:1"),
    ):
        pass


@pytest.mark.slow
def test_what_ran_on_a_lost_node_goes_to_another_one_or_the_node_is_named(tmp_path: Path) -> None:
    """Two engines on nodes of their own, a spare node with a made-up card; then none is spare."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2, num_gpus=1) for _ in range(3)]
        pool = PoolConfig(nodes=2, gpus_per_node=1, cpus_per_node=2, host_memory_gib=1)
        groups = {"engines": PlacedGroup(pool="all", nodes=2, gpus_per_node=1, roles=("reward",))}
        wanted = plan(
            GroupsPlacement(type="groups", pools={"all": pool}, groups=groups), [RoleNeed("reward", gpu=True)]
        )
        with RayCluster(wanted, deadline_s=60, address=cluster.address) as running:
            group = RoleGroup.start(
                *("reward", Stub, [("a",), ("b",)], running.places("reward")),
                log_dir=tmp_path,
                replaceable=True,
                again=partial(running.places_again, "reward", print),
            )
            group.ready(60)
            for spare in (True, False):
                before = {rank.node_id for rank in group.ranks}
                lost = next(node for node in nodes if node.node_id == group.ranks[1].node_id)
                nodes.remove(lost)
                cluster.remove_node(lost, allow_graceful=False)
                with pytest.raises(RankFailure, match="reward rank 1"):
                    group.map(Stub.hang, [False, True]).result(60)
                if spare:
                    group.restart([1]).result(60)
                    assert group.ranks[1].node_id not in before and group.ranks[0].node_id in before
                    running.check_places([group])
                    assert group.map(Stub.add, [1, 2], 1).result(20) == [2, 3]
            began = time.monotonic()
            said = r"node \S+ is lost, and no other one can hold what ran there: asked for 2 x .*; having "
            with pytest.raises(NodeLost, match=said):
                group.restart([1])
            assert time.monotonic() - began < NOTICED_S
    finally:
        cluster.shutdown()


@pytest.fixture(scope="module")
def ray_of_two_nodes() -> Cluster:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "num_gpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=2, num_gpus=2)
    yield cluster
    cluster.shutdown()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
