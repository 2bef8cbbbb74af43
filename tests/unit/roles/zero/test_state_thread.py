"""The thread that writes a copy of the training state."""

from __future__ import annotations

import threading

import pytest

from roles.zero.state_thread import StateThread


def answered(thread: StateThread) -> dict[str, str]:
    """The answer, once there is one."""
    while (answer := thread.answer()) is None:
        pass
    return answer


def test_it_answers_as_often_as_it_is_asked_for_other_ranks_may_take_longer() -> None:
    thread, go = StateThread(), threading.Event()

    def write() -> dict[str, str]:
        go.wait(10)
        return {"file": "hash"}

    thread.begin(write)
    assert thread.answer() is None
    with pytest.raises(AssertionError, match="still being written"):
        thread.begin(write)
    go.set()
    assert [answered(thread) for _ in range(3)] == [{"file": "hash"}] * 3
    thread.begin(lambda: {"file": "another"})
    assert answered(thread) == {"file": "another"}


def test_its_error_is_raised_and_it_can_begin_again() -> None:
    thread = StateThread()

    def full() -> dict[str, str]:
        raise OSError(28, "No space left on device")

    thread.begin(full)
    with pytest.raises(OSError, match="No space left"):
        answered(thread)
    thread.begin(dict)
    assert answered(thread) == {}
