"""Role groups on a real local Ray, with roles that need no model."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster import calls
from cluster.calls import wait_all
from cluster.config import LocalPlacement
from cluster.errors import DeadlineExceeded, RankFailure
from cluster.plan import RoleNeed, plan
from cluster.ray_cluster import RayCluster
from cluster.role_group import RoleGroup
from tests.integration.stub_role import Collective, Stub

START_S = 120.0
ROLES = {"actor": 2, "critic": 2, "rollout": 1}

Start = Callable[..., RoleGroup[Stub]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    wanted = plan(LocalPlacement(), [RoleNeed(role, ranks=ranks) for role, ranks in ROLES.items()])
    with RayCluster(wanted, deadline_s=60, object_store_gib=0.25) as running:
        yield running


@pytest.fixture
def start(cluster: RayCluster, tmp_path: Path) -> Iterator[Start]:
    """Start the group of a role; whatever a test started is ended after it."""
    groups = []

    def start_group(role: str = "actor", factory: type[Stub] = Stub, distributed: bool = False) -> RoleGroup[Stub]:
        arguments = [(f"{role}-{rank}",) for rank in range(ROLES[role])]
        group = RoleGroup.start(
            role,
            factory,
            arguments,
            cluster.places(role),
            log_dir=tmp_path,
            environment={"COLOUR": "blue"},
            distributed=distributed,
        )
        groups.append(group)
        group.ready(START_S)
        return group

    yield start_group
    for group in groups:
        group.stop()
    assert calls.alive == []


def test_every_rank_gets_its_shard_its_environment_and_one_thread(start: Start) -> None:
    group = start(distributed=True)
    assert len(group) == 2
    assert group.map(Stub.add, [1, 2], 10).result(20) == [11, 12]
    assert group.call(Stub.add, 1, 5).result(20) == [6, 6]
    first, second = group.call(Stub.facts).result(20)
    assert [first["RANK"], second["RANK"]] == ["0", "1"]
    assert first["WORLD_SIZE"] == "2" and first["LOCAL_RANK"] == second["LOCAL_RANK"] == "0"
    assert first["OMP_NUM_THREADS"] == "1" and first["COLOUR"] == "blue"
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == (second["MASTER_ADDR"], second["MASTER_PORT"])
    assert [first["thread_local"], second["thread_local"]] == ["actor-0", "actor-1"]
    assert group.call(Stub.facts).result(20) == [first, second]
    with pytest.raises(ValueError, match="actor.add: 3 shards for 2 ranks"):
        group.map(Stub.add, [1, 2, 3])


def test_output_goes_to_the_ranks_log(start: Start, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    start().call(Stub.speak).result(20)
    for rank in range(2):
        log = (tmp_path / f"actor-{rank}.log").read_text()
        for line in (f"actor-{rank} is built", "to stdout", "to stderr", "from a child", "from a descriptor"):
            assert line in log
    assert "to std" not in "".join(capfd.readouterr())


def test_large_values_pass_between_groups_by_reference(start: Start) -> None:
    actor, critic = start("actor"), start("critic")
    made = actor.call(Stub.make, 8)
    assert critic.map(Stub.size, made.refs).result(20) == [8 * 2**20] * 2
    assert all(seconds >= 0 for seconds in made.seconds())


def test_stream_yields_as_items_come(start: Start) -> None:
    group = start()
    items = [(rank, ray.get(ref)) for rank, ref in group.stream(Stub.count, [2, 3], 0.1, deadline_s=20)]
    assert sorted(items) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert {rank for rank, _ in items[:2]} == {0, 1}
    with pytest.raises(RankFailure, match=r"actor rank \d .*ValueError in count_then_fail.*no more numbers"):
        list(group.stream(Stub.count_then_fail, [1, 1], deadline_s=20))
    with pytest.raises(DeadlineExceeded, match=r"actor.count did not end within 1 s"):
        list(group.stream(Stub.count, [9, 9], 0.5, deadline_s=1))


def test_a_rank_that_raises_ends_the_wait_for_all_groups(start: Start) -> None:
    actor, critic = start("actor"), start("critic")
    began = time.monotonic()
    with pytest.raises(RankFailure) as failure:
        wait_all([critic.map(Stub.hang, [True, True]), actor.map(Stub.fail, [False, True])], 60)
    assert time.monotonic() - began < 20
    message = str(failure.value)
    assert message.startswith("actor rank 1 (node ")
    assert "raised ValueError in fail" in message and "actor-1 cannot" in message
    assert "last lines of /" in message and "actor-1 is built" in message and "Traceback" in message


@pytest.mark.parametrize("waits_for", ["its own group", "another group"])
def test_a_rank_that_is_killed_ends_every_wait(start: Start, waits_for: str) -> None:
    actor, critic = start("actor"), start("critic")
    dying = actor.map(Stub.die, [False, True])
    began = time.monotonic()
    with pytest.raises(RankFailure) as failure:
        (dying if waits_for == "its own group" else critic.map(Stub.hang, [True, True])).result(60)
    assert time.monotonic() - began < 20
    message = str(failure.value)
    assert message.startswith("actor rank 1 (node ")
    assert "died in" in message and "about to die" in message


def test_the_dead_rank_is_blamed_not_its_peer_in_the_collective(start: Start) -> None:
    group = start("actor", Collective, distributed=True)
    assert group.map(Collective.total, [1, 2]).result(30) == [3, 3]
    with pytest.raises(RankFailure, match=r"^actor rank 1 .* died in die_in_collective"):
        group.map(Collective.die_in_collective, [False, True]).result(60)


def test_a_deadline_names_who_was_doing_what(start: Start) -> None:
    actor, critic = start("actor"), start("critic")
    critic.map(Stub.hang, [False, True])
    with pytest.raises(DeadlineExceeded) as error:
        actor.map(Stub.hang, [True, False]).result(2)
    message = str(error.value)
    assert "actor.hang did not end within 2 s" in message
    assert "actor rank 0 (node " in message and "is in hang for 2." in message and "stub_role.py" in message
    assert "nap" in message and "actor rank 1" not in message
    assert "meanwhile critic rank 1" in message and "critic rank 0" not in message


def test_a_stopped_process_is_reported_as_silent(start: Start) -> None:
    group = start("rollout")
    pid = group.call(Stub.facts).result(20)[0]["pid"]
    with pytest.raises(DeadlineExceeded, match=r"rollout rank 0 .* does not say within 3 s"):
        group.call(Stub.hold_lock).result(1)
    os.kill(pid, 18)


def test_a_failed_argument_names_the_rank_that_failed_to_make_it(start: Start) -> None:
    actor, critic = start("actor"), start("critic")
    with pytest.raises(RankFailure, match=r"^actor rank \d .* raised ValueError in fail"):
        critic.map(Stub.add, actor.map(Stub.fail, [True, True]).refs).result(30)


def test_a_role_calls_another_through_its_client(start: Start) -> None:
    actor, rollout = start("actor"), start("rollout")
    actor.call(Stub.connect, rollout.client(deadline_s=3)).result(20)
    assert actor.call(Stub.ask, "add", 1, 2).result(20) == [[3], [3]]
    with pytest.raises(RankFailure, match=r"^rollout rank 0 .* raised ValueError"):
        actor.call(Stub.ask, "fail", True).result(30)
    with pytest.raises(DeadlineExceeded, match=r"rollout.hang did not end within 3 s:\nrollout rank 0 .* is in hang"):
        actor.map(Stub.ask, ["hang", "add"], 1).result(30)


def test_memory_is_measured_while_a_method_runs(cluster: RayCluster, start: Start) -> None:
    group = start("rollout")
    before = cluster.peak_memory()
    group.call(Stub.keep, 300).result(30)
    busy = group.call(Stub.hang, True)
    after = cluster.peak_memory()
    (before_rank,), (after_rank,) = before.ranks.values(), after.ranks.values()
    assert 0.25 < after_rank - before_rank < 0.6
    assert 0.25 < after.host - before.host < 0.6
    assert after.host > after_rank
    with pytest.raises(DeadlineExceeded):
        busy.result(0.1)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_a_role_started_ends_with_it(start: Start, how: str) -> None:
    group = start("rollout")
    child = psutil.Process(group.call(Stub.start_child).result(20)[0])
    if how == "stop":
        group.stop()
    else:
        with pytest.raises(RankFailure):
            group.call(Stub.die, True).result(30)
    gone = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < gone, "the child outlives its rank"
        time.sleep(0.1)


def test_a_role_that_a_worker_cannot_import_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    class Inner(Stub):
        pass

    with pytest.raises(ValueError, match="cannot be imported by a worker"):
        RoleGroup.start("rollout", Inner, [("a",)], cluster.places("rollout"), log_dir=tmp_path)
    assert calls.alive == []
    assert subprocess.run(["true"], check=False).returncode == 0
