"""Role groups on a real local Ray, with roles that need no model."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray

from cluster.config import LocalPlacement
from cluster.errors import DeadlineExceeded, RankFailure
from cluster.estimate.memory import GIB
from cluster.placement.plan import RoleNeed, plan
from cluster.ranks import calls, hangs, role_group
from cluster.ranks.calls import wait_all
from cluster.ranks.failures import Death
from cluster.ranks.role_group import RoleGroup
from cluster.ranks.starting import progress_of_starts
from cluster.ranks.usage import Usage
from cluster.ranks.watch import STARTED, Rank
from cluster.runtime.fork_server import Imports
from cluster.runtime.ray_cluster import RayCluster
from tests.integration.stub_role import Collective, Stub

START_S = 120.0
PATIENCE_S = 60.0
"""For what another process does soon, on a busy machine."""
ROLES = {"actor": 2, "critic": 2, "rollout": 1, "reference": 2, "reward": 2}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    wanted = plan(LocalPlacement(), [RoleNeed(role, workers=ranks) for role, ranks in ROLES.items()])
    imports = Imports(("torch",), {})
    with RayCluster(wanted, deadline_s=60, object_store_gib=0.25, imports=imports) as running:
        yield running


class Starter:
    """Starts groups; ends those that it started."""

    def __init__(self, cluster: RayCluster, logs: Path) -> None:
        self._cluster, self.logs = cluster, logs
        self._groups: list[RoleGroup[Stub]] = []

    def __call__(
        self,
        role: str = "actor",
        factory: Callable[..., Stub] = Stub,
        distributed: bool = False,
        replaceable: bool = False,
    ) -> RoleGroup[Stub]:
        group = RoleGroup.start(
            role,
            factory,
            [(f"{role}-{rank}",) for rank in range(ROLES[role])],
            self._cluster.places(role),
            log_dir=self.logs,
            environment={"COLOUR": "blue"},
            distributed=distributed,
            replaceable=replaceable,
        )
        self._groups.append(group)
        return group

    def stop(self) -> None:
        for group in self._groups:
            group.stop()
            assert not set(group.ranks) & set(STARTED.ranks)


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes are on this machine: a death is known at once."""
    monkeypatch.setattr(calls, "GRACE_S", 1.0)


@pytest.fixture
def start(cluster: RayCluster, tmp_path: Path) -> Iterator[Starter]:
    """For tests that leave their groups dead or busy."""
    starter = Starter(cluster, tmp_path)
    yield starter
    starter.stop()


@pytest.fixture(scope="module")
def lasting(cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RoleGroup[Stub]]]:
    """Two groups for tests that do them no harm."""
    starter = Starter(cluster, tmp_path_factory.mktemp("logs"))
    groups = [starter("reference", distributed=True), starter("reward")]
    wait_all([group.started for group in groups], START_S)
    yield groups
    starter.stop()


def test_every_rank_gets_its_shard_its_environment_and_one_thread(lasting: list[RoleGroup[Stub]]) -> None:
    group = lasting[0]
    assert len(group) == 2
    assert group.map(Stub.add, [1, 2], 10).result(20) == [11, 12]
    assert group.call(Stub.add, 1, 5).result(20) == [6, 6]
    first, second = group.call(Stub.facts).result(20)
    assert [first["RANK"], second["RANK"]] == ["0", "1"]
    assert first["WORLD_SIZE"] == "2" and first["LOCAL_RANK"] == second["LOCAL_RANK"] == "0"
    assert first["OMP_NUM_THREADS"] == "1" and first["COLOUR"] == "blue"
    assert (first["MASTER_ADDR"], first["MASTER_PORT"]) == (second["MASTER_ADDR"], second["MASTER_PORT"])
    assert [first["thread_local"], second["thread_local"]] == ["reference-0", "reference-1"]
    assert group.call(Stub.facts).result(20) == [first, second]
    with pytest.raises(ValueError, match=r"reference\.add: 3 shards for 2 ranks"):
        group.map(Stub.add, [1, 2, 3])
    with pytest.raises(TypeError, match=r"reference\.add: pass more by position"):
        group.call(Stub.add, 1, more=2)


def test_output_goes_to_the_ranks_log(lasting: list[RoleGroup[Stub]], capfd: pytest.CaptureFixture[str]) -> None:
    lasting[0].call(Stub.speak).result(20)
    for rank in lasting[0].ranks:
        path = Path(rank.identity.log)
        assert path.is_absolute() and path.name == f"reference-{rank.identity.rank}.log"
        for line in (f"{path.stem} is built", "to stdout", "to stderr", "from a child", "from a descriptor"):
            assert line in path.read_text()
    assert "to std" not in "".join(capfd.readouterr())


def test_large_values_pass_between_groups_by_reference(lasting: list[RoleGroup[Stub]]) -> None:
    reference, reward = lasting
    made = reference.call(Stub.make, 8)
    assert reward.map(Stub.size, made.refs).result(20) == [8 * 2**20] * 2


def until_busy(*ranks: Rank) -> None:
    """Wait until every rank runs a method."""
    give_up = time.monotonic() + PATIENCE_S
    while not all(status.busy for status in calls.ask(ranks, "status")):
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_roles_that_start_say_what_they_do(start: Starter) -> None:
    groups = [start("actor", Stub.loading), start("critic")]
    expected, told = {"actor": "loading 3/9 shards (1/2 ready)", "critic": "ready"}, list[dict[str, str]]()
    calls = [group.started for group in groups]

    def look() -> None:
        told.append(progress_of_starts(calls))
        if told[-1] == expected:
            (start.logs / "loaded").touch()

    wait_all(calls, START_S, look, 0.5)
    assert expected in told
    assert progress_of_starts(calls) == {"actor": "ready", "critic": "ready"}


def test_stream_yields_as_items_come(lasting: list[RoleGroup[Stub]], tmp_path: Path) -> None:
    """The ranks go on once it has yielded what both of them had."""
    group, items = lasting[0], list[tuple[int, int]]()
    for item in group.stream(Stub.count_on, [2, 3], str(tmp_path), deadline_s=PATIENCE_S):
        items.append(item)
        if len(items) in (2, 4):
            (tmp_path / str(len(items) // 2)).touch()
    assert sorted(items[:2]) == [(0, 0), (1, 0)] and sorted(items[2:4]) == [(0, 1), (1, 1)] and items[4:] == [(1, 2)]
    with pytest.raises(RankFailure, match=r"reference rank \d .*ValueError in count_then_fail.*no more numbers"):
        list(group.stream(Stub.count_then_fail, [1, 1], deadline_s=20))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_is_replaced_and_the_others_go_on(
    cluster: RayCluster, start: Starter, how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hangs, "STATUS_S", 1.0)
    monkeypatch.setattr(role_group, "CHILDREN_S", 1.0)
    monkeypatch.setattr(calls, "CONTROL_S", 4.0)
    group, others = start("reward", replaceable=True), start("actor")
    wait_all([group.started, others.started], START_S)
    first, second = (facts["pid"] for facts in group.call(Stub.facts).result(20))
    running = group.streaming(600)
    running.begin("first", 0, Stub.count, 3, 0.2)
    running.begin("second", 1, Stub.count, 3, 0.2)
    running.begin("later", 1, Stub.add, 5, 2)
    os.kill(second, how)
    found = []
    with pytest.raises((RankFailure, DeadlineExceeded)) as failure:
        for item in running:
            found.append(item)
            if len(found) == 3:  # from now on only the one that hangs is waited for
                running.calls._until = time.monotonic() + 2
    assert list(failure.value.blamed) == [group.ranks[1].identity]
    assert others.map(Stub.add, [1, 2]).result(20) == [1, 2], "the death of another group's rank ended the wait"
    old, usage = group.ranks[1], cluster.usage()
    assert len(usage.ranks) == len(STARTED.ranks) - 1, "of the rank that cannot answer"
    began = time.monotonic()
    restarted = group.restart([1])
    assert not restarted.over
    running.begin("again", 1, Stub.count, 2)
    found += list(running)
    assert sorted(found) == [("again", 0), ("again", 1), ("first", 0), ("first", 1), ("first", 2)]
    assert restarted.over and time.monotonic() - began < PATIENCE_S and old not in STARTED.ranks
    assert [facts["pid"] == first for facts in group.call(Stub.facts).result(20)] == [True, False]
    assert not psutil.pid_exists(second) or psutil.Process(second).status() == psutil.STATUS_ZOMBIE
    group.check_alive([0, 1])
    assert str(group.ranks[1].identity) == str(old.identity) and group.ranks[1].identity != old.identity


def test_ranks_that_meet_are_replaced_together(start: Starter) -> None:
    group = start("actor", Collective, distributed=True, replaceable=True)
    group.ready(START_S)
    with pytest.raises(ValueError, match=r"actor: ranks \[1\] cannot be restarted without their peers"):
        group.restart([1])
    with pytest.raises(RankFailure):
        group.map(Collective.die_in_collective, [False, True]).result(60)
    group.restart([0, 1]).result(START_S)
    assert group.map(Collective.total, [1, 2]).result(30) == [3, 3]


def test_a_rank_that_raises_ends_the_wait_for_all_groups(start: Starter) -> None:
    actor, critic = start("actor"), start("critic")
    wait_all([actor.started, critic.started], START_S)
    began = time.monotonic()
    with pytest.raises(RankFailure) as failure:
        wait_all([critic.map(Stub.hang, [True, True]), actor.map(Stub.fail, [False, True])], 200)
    assert time.monotonic() - began < PATIENCE_S
    message = str(failure.value)
    assert message.startswith("actor rank 1 (node ")
    assert "raised ValueError in fail" in message and "actor-1 cannot" in message
    assert "last lines of /" in message and "actor-1 is built" in message and "Traceback" in message


@pytest.mark.parametrize("waits_for", ["its own group", "another group"])
def test_a_rank_that_is_killed_ends_every_wait(start: Starter, waits_for: str) -> None:
    actor, critic = start("actor"), start("critic")
    wait_all([actor.started, critic.started], START_S)
    dying = actor.map(Stub.die, [False, True])
    began = time.monotonic()
    with pytest.raises(RankFailure) as failure:
        (dying if waits_for == "its own group" else critic.map(Stub.hang, [True, True])).result(200)
    assert time.monotonic() - began < PATIENCE_S
    message = str(failure.value)
    assert message.startswith("actor rank 1 (node ")
    assert "died in" in message and "about to die" in message


def test_a_rank_that_has_lost_its_card_ends_and_is_replaced(start: Starter) -> None:
    group = start("reward", replaceable=True)
    group.ready(START_S)
    lost = group.call(Stub.facts).result(20)[1]["pid"]
    with pytest.raises(Death, match=r"^reward rank 1 .* raised AcceleratorError in lose_card .*: CUDA error: device"):
        group.map(Stub.lose_card, [False, True]).result(20)
    until = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(lost) and psutil.Process(lost).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.05)
    group.restart([1]).result(START_S)
    assert group.map(Stub.add, [1, 2]).result(20) == [1, 2]


def test_the_dead_rank_is_blamed_not_its_peer_in_the_collective(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "GRACE_S", PATIENCE_S)  # its peer may tell first
    group = start("actor", Collective, distributed=True)
    group.ready(START_S)
    assert group.map(Collective.total, [1, 2]).result(30) == [3, 3]
    with pytest.raises(RankFailure, match=r"^actor rank 1 .* died in die_in_collective"):
        group.map(Collective.die_in_collective, [False, True]).result(60)


def test_a_deadline_names_who_was_doing_what(start: Starter) -> None:
    actor, critic = start("actor"), start("critic")
    wait_all([actor.started, critic.started], START_S)
    critic.map(Stub.hang, [False, True])
    running = actor.map(Stub.hang, [True, False])
    until_busy(actor.ranks[0], critic.ranks[1])
    assert ray.wait([running.receipts[1]], timeout=PATIENCE_S)[0]
    with pytest.raises(DeadlineExceeded) as error:
        running.result(2)
    message = str(error.value)
    assert "actor.hang did not end within 2 s" in message
    assert re.search(r"actor rank 0 \(node .* is in hang for [2-9]\d*\.\d s .*stub_role\.py", message)
    assert "nap" in message and "actor rank 1" not in message
    assert "meanwhile critic rank 1" in message and "critic rank 0" not in message
    with pytest.raises(DeadlineExceeded, match=r"critic.count did not end within 1 s"):
        list(critic.stream(Stub.count, [1, 1], deadline_s=1))


def test_a_stopped_process_is_reported_as_silent(start: Starter) -> None:
    group = start("rollout")
    group.ready(START_S)
    pid = group.call(Stub.facts).result(20)[0]["pid"]
    running, give_up = group.call(Stub.hold_lock), time.monotonic() + PATIENCE_S
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    with pytest.raises(DeadlineExceeded, match=r"rollout rank 0 .* does not say within 3 s"):
        running.result(1)
    os.kill(pid, 18)


def test_a_failed_argument_names_the_rank_that_failed_to_make_it(lasting: list[RoleGroup[Stub]]) -> None:
    reference, reward = lasting
    with pytest.raises(RankFailure, match=r"^reference rank \d .* raised ValueError in fail"):
        reward.map(Stub.add, reference.map(Stub.fail, [True, True]).refs).result(30)


def test_a_role_calls_another_through_its_client(lasting: list[RoleGroup[Stub]], start: Starter) -> None:
    caller, rollout = lasting[1], start("rollout")
    rollout.ready(START_S)
    caller.call(Stub.connect, rollout.client(deadline_s=PATIENCE_S)).result(START_S)
    assert caller.call(Stub.ask, "add", 1, 2).result(20) == [[3], [3]]
    with pytest.raises(RankFailure, match=r"^rollout rank 0 .* raised ValueError"):
        caller.call(Stub.ask, "fail", True).result(PATIENCE_S)
    caller.call(Stub.connect, rollout.client(deadline_s=3)).result(START_S)
    rollout.call(Stub.hang, True)
    until_busy(*rollout.ranks)
    with pytest.raises(DeadlineExceeded, match=r"rollout.hang did not end within 3 s:\nrollout rank 0 .* is in hang"):
        caller.call(Stub.ask, "hang", True).result(PATIENCE_S)


def _rank_peak(usage: Usage) -> float:
    """Highest memory in GiB that the rank of `rollout` reports."""
    return max(max(report.series.values()) for who, report in usage.ranks if who.role == "rollout") / GIB


def test_memory_is_measured_while_a_method_runs(cluster: RayCluster, start: Starter) -> None:
    group = start("rollout")
    group.ready(START_S)
    before = cluster.usage()
    group.call(Stub.keep, 1600).result(30)
    busy = group.call(Stub.hang, True)
    before_rank, after_rank = _rank_peak(before), 0.0
    after = before
    give_up = time.monotonic() + PATIENCE_S  # the driver's sampler looks about once a second, seldom on a busy machine
    while after_rank < before_rank + 1.5 or after.host_peak < before.host_peak + 0.2:  # of more ranks before
        assert time.monotonic() < give_up, f"{before.host_peak=}, {after.host_peak=}, {before_rank=}, {after_rank=}"
        time.sleep(0.5)
        after = cluster.usage()
        after_rank = max(after_rank, _rank_peak(after))
    assert after_rank < before_rank + 1.9
    assert after.host_peak > after_rank
    with pytest.raises(DeadlineExceeded):
        busy.result(0.1)


def test_a_rank_tells_when_it_was_busy(cluster: RayCluster, start: Starter) -> None:
    group = start("rollout")
    group.ready(START_S)
    cluster.usage()
    began = time.time()
    group.call(Stub.hang, False).result(30)
    ended = time.time()
    busy = cluster.usage().busy
    assert len(busy) == len(group)
    assert all(began - 0.1 <= first <= last <= ended + 0.1 for first, last in busy)
    assert cluster.usage().busy == []


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_a_role_started_ends_with_it(start: Starter, how: str) -> None:
    group = start("rollout")
    group.ready(START_S)
    child = psutil.Process(group.call(Stub.start_child).result(20)[0])
    if how == "stop":
        group.stop()
    else:
        with pytest.raises(RankFailure):
            group.call(Stub.die, True).result(30)
    gone = time.monotonic() + PATIENCE_S
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < gone, "the child outlives its rank"
        time.sleep(0.1)


def test_a_role_that_a_worker_cannot_import_is_refused(cluster: RayCluster, tmp_path: Path) -> None:
    class Inner(Stub):
        pass

    before = list(STARTED.ranks)
    with pytest.raises(ValueError, match="cannot be imported by a worker"):
        RoleGroup.start("rollout", Inner, [("a",)], cluster.places("rollout"), log_dir=tmp_path)
    assert STARTED.ranks == before
