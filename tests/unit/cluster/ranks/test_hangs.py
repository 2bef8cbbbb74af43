"""Who is late, and in which words."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from cluster.ranks import hangs
from cluster.ranks.hangs import Seen, late_among, lines_of, silent_of, within
from cluster.ranks.identity import Identity
from cluster.ranks.process_state import ProcessState
from cluster.ranks.status import Status

COMPUTES = ["cluster/ranks/worker.py:3 _watched", "roles/actor.py:4 update", "roles/losses/policy_loss.py:5 ratio"]
ALL_REDUCE = [*COMPUTES[:2], "distributed/c10d_logger.py:83 wrapper", "distributed/distributed_c10d.py:9 all_reduce"]
HANDLE = [*COMPUTES[:2], "zero/partition_parameters.py:67 wait"]
WAITS, WORKS, STOPPED = (ProcessState(47, status, 0.97) for status in ("sleeping", "running", "stopped"))


def seen(
    rank: int, frames: list[str] | None, process: ProcessState | None = WAITS, collectives: int | None = 8
) -> Seen:
    """A rank of the actor; without frames it does not answer, with none it is idle."""
    method = "update" if frames else None
    status = None if frames is None else Status(47, method, 12.0, frames, collectives)
    return Seen(Identity("actor", rank, f"node-{rank}", f"/run/logs/actor-{rank}.log"), "update", status, process)


@pytest.mark.parametrize(
    ("peers", "late"),
    [
        ([seen(0, ALL_REDUCE), seen(1, COMPUTES, WORKS), seen(2, HANDLE)], [1]),
        ([seen(0, ALL_REDUCE), seen(1, None, STOPPED)], [1]),
        ([seen(0, ALL_REDUCE), seen(1, None, None), seen(2, COMPUTES)], [1, 2]),
        ([seen(0, ALL_REDUCE), seen(1, [])], [1]),
        ([seen(0, COMPUTES), seen(1, [])], [0]),
        ([seen(0, ALL_REDUCE, collectives=9), seen(1, HANDLE, collectives=8)], [1]),
        ([seen(0, ALL_REDUCE), seen(1, ALL_REDUCE)], [0, 1]),
        ([seen(0, ALL_REDUCE, collectives=None), seen(1, ALL_REDUCE, collectives=None)], [0, 1]),
        ([seen(0, COMPUTES)], [0]),
    ],
)
def test_late_is_who_keeps_the_others_waiting(peers: list[Seen], late: list[int]) -> None:
    assert [own.who.rank for own in late_among(peers)] == late


def test_a_late_rank_comes_first_and_the_others_wait_for_it() -> None:
    late, waits = lines_of([seen(0, ALL_REDUCE), seen(1, COMPUTES, WORKS)])
    assert late == (
        "actor rank 1 (node node-1) is in update for 12.0 s (pid 47), at cluster/ranks/worker.py:3 _watched > "
        "roles/actor.py:4 update > roles/losses/policy_loss.py:5 ratio; its process computes (97% of a CPU); "
        "its log is /run/logs/actor-1.log"
    )
    assert waits.startswith("actor rank 0 (node node-0) waits for rank 1 in a collective (all_reduce, number 8): it is")


def test_a_process_that_does_not_answer_is_told_by_the_system() -> None:
    (stopped,) = lines_of([seen(1, None, STOPPED)])
    assert (
        "does not say within 3 s what it is doing: its process is stopped (SIGSTOP, or a debugger) (pid 47)" in stopped
    )
    frames = [("/lib/re/x.py", 7, "match"), (hangs_file(), 3, "_watched")]
    lines = [f'  File "{file}", line {line} in {name}' for file, line, name in frames]
    stacks = "\n".join(["Thread 0x1 (most recent call first):", *lines])
    (locked,) = lines_of([seen(1, None, ProcessState(47, "running", 1.0, stacks))])
    assert (
        "its process computes (100% of a CPU) (pid 47), at cluster/ranks/worker.py:3 _watched > re/x.py:7 match"
        in locked
    )
    (cut,) = lines_of([seen(1, None, None)])
    assert (
        cut.startswith("actor rank 1 (node node-1) does not say") and "its node does not say how its process is" in cut
    )
    (unborn,) = lines_of([replace(seen(1, None, None), born=False)])
    assert "what it is doing, and its process has not been heard of yet: Ray still starts it" in unborn


def hangs_file() -> str:
    return hangs.__file__.replace("hangs.py", "worker.py")


def test_a_rank_that_has_begun_fewer_collectives_is_told_with_its_number() -> None:
    late, waits = lines_of([seen(0, ALL_REDUCE, collectives=9), seen(1, HANDLE, collectives=8)])
    assert late.startswith("actor rank 1 ") and "; in a collective (wait, number 8); its process waits" in late
    assert waits.startswith("actor rank 0 (node node-0) waits for rank 1 in a collective (all_reduce, number 9)")


def test_ranks_that_all_wait_for_each_other_point_to_the_network() -> None:
    *_, network = lines_of([seen(0, ALL_REDUCE), seen(1, ALL_REDUCE)])
    assert (
        network == "rank 0, rank 1 wait for each other in the same collective: look at the network between their nodes"
    )


def test_what_has_not_begun_waits_for_its_arguments() -> None:
    (idle,) = lines_of([seen(0, [])])
    assert "is idle for 12.0 s" in idle and "it is not in update: arguments are missing" in idle
    stopped = replace(seen(0, []), raylet=ProcessState(9, "stopped"))
    assert "Ray's raylet on its node is stopped (SIGSTOP, or a debugger) (pid 9)" in str(stopped)


def test_a_file_with_all_stacks_is_written_or_it_is_said_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    who = Identity("actor", 1, "node", str(tmp_path / "logs/actor-1.log"))
    one = Seen(who, "update", None, ProcessState(47, "running", 1.0, "Thread 0x1 …"))
    monkeypatch.setattr(hangs, "HANG_FILE_S", 60.0)
    told = hangs._written([one])
    (file,) = (tmp_path / "logs").iterdir()
    assert told == f"all stacks are in {file}" and "Thread 0x1 …" in file.read_text() and str(one) in file.read_text()
    (tmp_path / "in-the-way").write_text("")
    blocked = Seen(Identity("actor", 1, "node", str(tmp_path / "in-the-way/a.log")), "update", None, None)
    assert "could not be written: " in hangs._written([blocked])
    monkeypatch.setattr(hangs, "HANG_FILE_S", 0.05)
    answers = threading.Event()
    monkeypatch.setattr(Path, "write_text", lambda *arguments, **keywords: answers.wait(100))
    assert "could not be written within 0.05 s: look at the disk" in hangs._written([one])
    answers.set()


def test_what_takes_too_long_is_left_alone() -> None:
    go_on = threading.Event()
    assert within(60.0, lambda: "done") == "done"
    with pytest.raises(TimeoutError):
        within(0.01, lambda: go_on.wait(100))
    go_on.set()
    with pytest.raises(KeyError):
        within(60.0, lambda: {}["missing"])


def test_an_error_while_a_hang_is_looked_at_does_not_hide_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(ranks: object) -> list[Seen]:
        raise PermissionError("/proc/47")

    monkeypatch.setattr(hangs, "_seen", broken)
    monkeypatch.setattr(hangs, "STARTED", SimpleNamespace(ranks=[]))
    who, rank = seen(1, COMPUTES).who, Mock()
    rank.identity = who
    late, told = hangs.report({rank: "update"})
    assert late == [who]
    assert told == f"{who}: what they are doing cannot be said: PermissionError: /proc/47"


def test_a_machine_that_stands_still_uses_up_a_part_of_the_seconds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it does, no rank can answer, and the wait runs out; all that it waited for comes afterwards."""
    waits = list[float]()

    def wait(references: list[str], *, num_returns: int, timeout: float) -> tuple[list[str], list[str]]:
        waits.append(timeout)
        return (references[:1], references[1:]) if len(waits) > 1 else ([], references)

    monkeypatch.setattr(hangs, "ray", SimpleNamespace(wait=wait))
    assert silent_of(["actor", "critic"], 5.0) == [] and waits == [0.5] * 3
    silent = SimpleNamespace(wait=lambda references, **more: (waits.append(more["timeout"]), references))
    waits.clear()
    monkeypatch.setattr(hangs, "ray", silent)
    assert silent_of(["actor"], 5.0) == ["actor"] and sum(waits) == pytest.approx(5.0)
