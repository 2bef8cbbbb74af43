"""Ways to hang, each on a real Ray: it ends within its deadline, and the error names the culprit.

The table in tests/README.md is made of what these tests print (`-s`): the way, what is said first, and after how many
seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.config import GroupsPlacement, LocalPlacement, PlacedGroup, PoolConfig
from cluster.errors import ClusterError, DeadlineExceeded, PlacementError, RankFailure
from cluster.placement.plan import RoleNeed, plan
from cluster.ranks.calls import wait_all
from cluster.ranks.host_memory import kill_tree
from cluster.ranks.role_group import RoleGroup
from cluster.runtime.fork_server import Imports
from cluster.runtime.living_nodes import living_nodes
from cluster.runtime.ray_cluster import RayCluster, attached
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.groups.recovery import Recovery
from roles.config.rewards import FunctionReward, RemoteReward
from roles.reward_function import FunctionScorer
from roles.reward_service import RemoteScorer
from tests.integration.stub_role import Hanging, Stub
from tests.unit.roles.test_reward_function import SIGNATURE, rollouts

pytestmark = pytest.mark.slow
START_S, DEADLINE_S = 120.0, 4.0
TOLD_S = 30.0
"""Seconds after its deadline in which a wait must have ended: ranks and nodes are asked meanwhile."""
ROLES = {"actor": 2, "reference": 2, "rollout": 2, "reward": 1}
Start = Callable[..., RoleGroup[Any]]


def started_on(cluster: RayCluster, logs: Path, role: str, kind: type[Any], *arguments: Any, **options: Any) -> Any:
    places = cluster.places(role)
    group = RoleGroup.start(role, kind, [arguments or (role,)] * len(places), places, log_dir=logs, **options)
    group.ready(START_S)
    return group


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    wanted = plan(LocalPlacement(), [RoleNeed(role, workers=ranks) for role, ranks in ROLES.items()])
    with RayCluster(wanted, deadline_s=60, object_store_gib=0.1, imports=Imports(("torch",), {})) as running:
        yield running


@pytest.fixture
def start(cluster: RayCluster, tmp_path: Path) -> Iterator[Start]:
    groups = []

    def begin(role: str, kind: type[Any], *arguments: Any, **options: Any) -> Any:
        groups.append(started_on(cluster, tmp_path / "logs", role, kind, *arguments, **options))
        return groups[-1]

    yield begin
    for group in groups:
        group.stop()


@contextmanager
def ends(way: str, kind: type[ClusterError] = DeadlineExceeded, within_s: float = DEADLINE_S) -> Iterator[list[str]]:
    """Context in which a wait ends with an error of a kind soon after its deadline; gives its lines."""
    lines: list[str] = []
    began = time.monotonic()
    with pytest.raises(kind) as error:
        yield lines
    seconds = time.monotonic() - began
    lines += str(error.value).splitlines()
    print(f"\n| {way} | {seconds:.1f} s |", *lines, sep="\n")
    assert seconds < within_s + TOLD_S


def pids(group: RoleGroup[Any]) -> list[int]:
    return [int(ray.get(rank.pid)) for rank in group.ranks]


WAYS = {
    "is stopped": ("", r"does not say within 3 s what it is doing: its process is stopped"),
    "loops in Python": ("loop", r"is in update for .*stub_role\.py:\d+ loop.*; its process computes"),
    "holds Python's lock": ("lock", r"does not say within 3 s.* its process computes .* at .*stub_role\.py:\d+ hold"),
    "comes late to a collective": ("nap", r"is in update for .*stub_role\.py:\d+ nap; its process waits"),
    "writes to a disk that blocks": ("write", r"is in update for .*stub_role\.py:\d+ write.*; its process waits"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_trained_rank(start: Start, tmp_path: Path, way: str) -> None:
    how, said = WAYS[way]
    os.mkfifo(tmp_path / "fifo")
    group = start("actor", Hanging, str(tmp_path / "fifo"), distributed=True)
    if not how:
        os.kill(pids(group)[1], signal.SIGSTOP)
    running = group.map(Hanging.update, ["", how])
    with ends(f"a trained rank {way}") as lines:
        running.result(DEADLINE_S)
    assert lines[0] == f"actor.update did not end within {DEADLINE_S:g} s:"
    assert re.match(rf"actor rank 1 \(node .*\) {said}", lines[1]), lines[1]
    waits = r"actor rank 0 \(node .*\) waits for rank 1 in a collective \(all_reduce, number \d+\)"
    assert re.match(waits, lines[2]), lines[2]
    stacks = Path(lines[-1].removeprefix("all stacks are in ")).read_text()
    assert "all_reduce" in stacks and (how in ("", "lock") or f"in {how}" in stacks)


def test_ranks_that_wait_for_each_other(start: Start, tmp_path: Path) -> None:
    group = start("actor", Hanging, "", distributed=True)
    running = group.map(Hanging.update, ["astray 0", "astray 1"])
    with ends("ranks wait in the same collective for each other") as lines:
        running.result(DEADLINE_S)
    assert lines[-2] == (
        "rank 0, rank 1 wait for each other in the same collective: look at the network between their nodes"
    )


def test_a_frozen_rank_is_named_and_its_group_starts_again(start: Start) -> None:
    group, told = start("reference", Hanging, "", distributed=True, replaceable=True), list[str]()
    recovery = Recovery(RecoveryConfig(frozen_failures_per_hour=1), told.append, start_s=START_S)
    recovery.frozen["reference"] = group
    os.kill(pids(group)[1], signal.SIGSTOP)
    began = time.monotonic()
    answers = recovery.repeated(lambda: group.map(Hanging.update, ["", ""]).result(DEADLINE_S))
    print(f"\n| a frozen rank is stopped | {time.monotonic() - began:.1f} s until it has answered |", *told, sep="\n")
    assert answers == [2.0, 2.0] and "reference: started again, since reference.update did not end" in told[0]


def test_an_engine_is_named(start: Start) -> None:
    group = start("rollout", Stub, replaceable=True)
    os.kill(pids(group)[1], signal.SIGSTOP)
    running = group.stream(Stub.count, [2, 2], deadline_s=DEADLINE_S)
    with ends("an engine is stopped") as lines:
        list(running)
    assert re.match(r"rollout rank 1 \(node .*\) does not say .*: its process is stopped", lines[1]), lines


FUNCTIONS = {
    "sleeps": "    import time; time.sleep(600)\n",
    "loops": "    while True: pass\n",
    "has a process that is stopped": "    import os; os.kill(os.getpid(), 19)\n",
}


@pytest.mark.parametrize("way", FUNCTIONS)
def test_a_reward_function(start: Start, tmp_path: Path, way: str) -> None:
    file = tmp_path / "reward.py"
    file.write_text(SIGNATURE + FUNCTIONS[way])
    config = FunctionReward(path=str(file), timeout_s=DEADLINE_S, retries=0)
    group = start("reward", FunctionScorer, config)
    with ends(f"a reward function {way}", RankFailure) as lines:
        group.map(FunctionScorer.score, [rollouts(2)]).result(60)
    assert re.match(r"reward rank 0 \(node .*\) raised RewardError in score after \d+\.\d s: reward function", lines[0])
    assert f"no answer within {DEADLINE_S:g} s" in lines[0]


def test_the_process_that_calls_a_reward_function(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text(SIGNATURE + "    return [0.0] * len(prompts)\n")
    group = start("reward", FunctionScorer, FunctionReward(path=str(file)))
    os.kill(pids(group)[0], signal.SIGSTOP)
    with ends("the process that calls a reward function is stopped") as lines:
        group.map(FunctionScorer.score, [rollouts(2)]).result(DEADLINE_S)
    assert re.match(r"reward rank 0 \(node .*\) does not say .*: its process is stopped", lines[1]), lines


def test_a_reward_service_that_never_answers(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/score"
        config = RemoteReward(type="remote", urls=[url], timeout_s=DEADLINE_S, retries=0)  # type: ignore[list-item]
        group = start("reward", RemoteScorer, config)
        with ends("a reward service never answers", RankFailure) as lines:
            group.map(RemoteScorer.score, [rollouts(2)]).result(60)
    assert re.match(r"reward rank 0 \(node .*\) raised RewardError in score", lines[0]) and url in "".join(lines)


def test_a_full_object_store(start: Start) -> None:
    """What does not fit any more is spilled to the disk by Ray: it takes longer, and nothing hangs."""
    group = start("rollout", Stub)
    began, made = time.monotonic(), []
    for _ in range(3):
        made.append(group.call(Stub.make, 60))
        wait_all([made[-1]], 60)
    sizes = group.map(Stub.size, made[0].refs).result(60)
    print(f"\n| the object store (100 MiB) gets 360 MiB | {time.monotonic() - began:.1f} s |", sizes)
    assert sizes == [60 * 2**20] * 2


@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_ray_itself(tmp_path: Path, victim: str) -> None:
    """In a process of its own: a Ray that was hurt does not come back in the same one."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.integration.stub_hang", victim, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    print(f"\n| Ray's {victim} is stopped |", result.stdout, sep="\n")
    assert "left" in result.stdout and result.returncode == 0, result.stdout + result.stderr
    if victim == "raylet":
        assert re.search(r"actor rank 0 \(node .*\) is idle .* Ray's raylet on its node is stopped", result.stdout)


NAMESPACE, OUTSIDE, INSIDE = "tetrarch-node", "tetrarch-a", "tetrarch-b"
HEAD, OTHER, PORT = "10.77.0.1", "10.77.0.2", 6399


def run(words: str) -> None:
    subprocess.run(words.split(), check=True, capture_output=True, timeout=60)


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[str]:
    """A Ray of two nodes, the second in a network namespace of its own; the address of the first."""
    if os.geteuid() or not shutil.which("ip") or subprocess.run(["unshare", "-n", "true"], check=False).returncode:
        pytest.skip("makes a network namespace, as root")
    run(f"ip netns add {NAMESPACE}")
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        run(f"ip link add {OUTSIDE} type veth peer name {INSIDE} netns {NAMESPACE}")
        run(f"ip addr add {HEAD}/24 dev {OUTSIDE}")
        run(f"ip link set {OUTSIDE} up")
        for words in (f"addr add {OTHER}/24 dev {INSIDE}", f"link set {INSIDE} up", "link set lo up"):
            run(f"ip -n {NAMESPACE} {words}")
        node = f"{sys.executable} -m ray.scripts.scripts start --block --disable-usage-stats --num-cpus=4 --num-gpus=1"
        node += " --object-store-memory=100000000"
        head = f"{node} --head --node-ip-address={HEAD} --port={PORT} --include-dashboard=false"
        other = f"hostname node-b; exec {node} --address={HEAD}:{PORT} --node-ip-address={OTHER}"
        log, open_to_us = (tmp_path / "ray.txt").open("wb"), {**os.environ, "RAY_AUTH_MODE": "disabled"}
        nodes.append(subprocess.Popen(head.split(), stdout=log, stderr=log, env=open_to_us))
        address = f"{HEAD}:{PORT}"
        wait_for_nodes(address, 1)
        inside = ["ip", "netns", "exec", NAMESPACE, "unshare", "-u", "sh", "-c", other]
        nodes.append(subprocess.Popen(inside, stdout=log, stderr=log, env=open_to_us))
        wait_for_nodes(address, 2)
        yield address
    finally:
        for process in nodes:
            kill_tree(process.pid)
            process.wait()
        run(f"ip netns del {NAMESPACE}")


def wait_for_nodes(address: str, number: int) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with suppress(PlacementError), attached(address):
            if len(living_nodes(free=False)) == number:
                return
        time.sleep(1)
    raise TimeoutError(f"Ray at {address} has no {number} nodes")


def test_a_network_that_is_cut(two_nodes: str, tmp_path: Path) -> None:
    pool = PoolConfig(nodes=2, gpus_per_node=1, cpus_per_node=4, host_memory_gib=1)
    groups = {"trained": PlacedGroup(pool="all", nodes=2, gpus_per_node=1, roles=("actor",))}
    wanted = plan(GroupsPlacement(type="groups", pools={"all": pool}, groups=groups), [RoleNeed("actor", gpu=True)])
    with RayCluster(wanted, deadline_s=60, address=two_nodes) as cluster:
        group = started_on(cluster, tmp_path / "logs", "actor", Stub)
        far = next(rank.identity for rank in group.ranks if rank.identity.node == "node-b")
        running = group.map(Stub.hang, [rank.identity == far for rank in group.ranks])
        time.sleep(1)
        run(f"ip link set {OUTSIDE} down")
        with ends("the network between two nodes is cut") as lines:
            running.result(DEADLINE_S)
        assert lines[1].startswith(f"{far} does not say within 3 s what it is doing, and its node does not say")
        with ends("and once Ray has noticed", RankFailure, within_s=90) as lines:
            running.result(90)
        assert lines[0].startswith(f"{far} died in hang")
