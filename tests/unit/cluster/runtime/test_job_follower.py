"""A job's log is shown once and whole, whatever becomes of the connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster.errors import ClusterError, ClusterUnreachable
from cluster.runtime import job_follower
from cluster.runtime.job_follower import Follower, JobState

DONE = JobState("SUCCEEDED", 0)
RUNNING = JobState("RUNNING")
LOST = ClusterUnreachable("no route to the head")


class FakeJobs:
    """Each connection is a list of pieces, or of an error that breaks it; each question after the state has an answer,
    the last one for ever."""

    def __init__(self, connections: list[list[str | BaseException]], states: list[JobState | BaseException]) -> None:
        self.connections, self.states = connections, states

    def log(self, job: str) -> Iterator[str]:
        for piece in self.connections.pop(0) if len(self.connections) > 1 else self.connections[0]:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    def state(self, job: str) -> JobState:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, BaseException):
            raise state
        return state


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(job_follower, "time", clock)
    return clock


def follow(jobs: FakeJobs) -> tuple[JobState, str, list[str]]:
    """How it ended, what was shown and what was told."""
    shown: list[str] = []
    told: list[str] = []
    state = Follower(jobs, "run-1", shown.append, told.append).until_end()
    return state, "".join(shown), told


def test_the_log_of_a_job_that_ends() -> None:
    assert follow(FakeJobs([["one\n", "two\n"]], [RUNNING, DONE])) == (DONE, "one\ntwo\n", [])


def test_a_new_connection_shows_only_what_is_new() -> None:
    """It starts at the log's beginning, in other pieces."""
    connections: list[list[str | BaseException]] = [
        ["one\n", "tw", LOST],
        [LOST],
        ["one\ntwo\nthr"],
        ["one\n", "two\nthree\nfour\n"],
    ]
    state, shown, told = follow(FakeJobs(connections, [RUNNING, RUNNING, LOST, RUNNING, DONE]))
    assert (state, shown) == (DONE, "one\ntwo\nthree\nfour\n")
    assert len(told) == 1 and "trying again" in told[0] and "no route" in told[0]


def test_what_was_written_after_the_connection_broke_is_shown_though_the_job_has_ended() -> None:
    connections: list[list[str | BaseException]] = [["one\n", LOST], ["one\nlast words\n"]]
    assert follow(FakeJobs(connections, [RUNNING, DONE]))[1] == "one\nlast words\n"


@pytest.mark.parametrize("where", ["state", "log"])
def test_a_connection_that_does_not_come_back_is_given_up(clock: Clock, where: str) -> None:
    """Where the state is told but the log is not (a proxy without WebSockets), too."""
    began = clock.now
    jobs = FakeJobs([["one\n", LOST]], [RUNNING, LOST]) if where == "state" else FakeJobs([[LOST]], [RUNNING])
    with pytest.raises(ClusterError, match=r"no connection for 300 s: no route to the head"):
        follow(jobs)
    assert 300 < clock.now - began < 310


def test_an_interrupted_follower_goes_on_where_it_was() -> None:
    shown: list[str] = []
    follower = Follower(FakeJobs([["one\n", KeyboardInterrupt()], ["one\ntwo\n"]], [DONE]), "j", shown.append, print)
    with pytest.raises(KeyboardInterrupt):
        follower.until_end()
    assert follower.until_end() == DONE
    assert shown == ["one\n", "two\n"]


def test_a_stopped_job_has_a_deadline() -> None:
    follower = Follower(FakeJobs([[]], [RUNNING]), "run-1", print, print)
    with pytest.raises(ClusterError, match="run-1 has not ended within 60 s"):
        follower.until_end(60.0)


@pytest.mark.parametrize(
    ("state", "code"),
    [
        (DONE, 0),
        (JobState("SUCCEEDED"), 0),
        (JobState("FAILED", 2), 2),
        (JobState("FAILED", -9), 137),
        (JobState("FAILED", None, "the supervisor died"), 1),
        (JobState("STOPPED"), 143),
    ],
)
def test_exit_codes(state: JobState, code: int) -> None:
    assert state.ended and state.exit_code == code
    assert not RUNNING.ended and not JobState("PENDING").ended
