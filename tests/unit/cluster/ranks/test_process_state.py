"""What the system says of a process that cannot speak for itself."""

from __future__ import annotations

import linecache
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from cluster.ranks import process_state
from cluster.ranks.process_state import ProcessState, examined, frame_name, frames_of, innermost, threads_of

OFFERING = """
import sys, threading, time
from cluster.ranks.process_state import offer_stacks
offer_stacks()
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
def loop():
    print("ready", flush=True){body}
loop()
"""
PARENT = ("sh", "-c", "sleep 600; true")
LOOPS = "\n    while True: pass"
HOLDS_THE_LOCK = "\n    import re; re.match('(a+)+$', 'a' * 60 + 'b')"
WAITS = "\n    import time; time.sleep(600)"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str, body: str = "") -> subprocess.Popen[str]:
        """A program; or a process that offers its stacks, and is in `body` once it is `ready`."""
        words = words or (sys.executable, "-c", OFFERING.format(body=body))
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield begin
    for process in started:
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()
        process.wait()


def ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None and process.stdout.readline() == "ready\n"


def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a process is late with its stacks, and may pause between two of them."""
    monkeypatch.setattr(process_state, "DUMPED_S", 60.0)
    monkeypatch.setattr(process_state, "STILL_S", 0.5)


def test_each_process_is_seen_as_it_is(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_state, "WATCHED_S", 0.3)
    patient(monkeypatch)
    bodies = {"loops": LOOPS, "holds the lock": HOLDS_THE_LOCK, "waits": WAITS}
    processes = {name: start(body=body) for name, body in bodies.items()}
    others = {"offers nothing": ("sleep", "600"), "is stopped": ("sleep", "600"), "has a child": PARENT}
    processes |= {name: start(*words) for name, words in others.items()}
    parent = psutil.Process(processes["has a child"].pid)
    # Until the child is the program, the shell waits in vfork, which looks like a wait for a disk.
    while not (children := [child for child in parent.children() if child.name() == "sleep"]):
        time.sleep(0.01)
    processes["is stopped"].send_signal(signal.SIGSTOP)
    children[0].suspend()
    gone = subprocess.Popen(["true"])
    gone.wait()
    for name in bodies:
        ready(processes[name])
    found = dict(zip([*processes, "gone"], examined([*(p.pid for p in processes.values()), gone.pid]), strict=True))
    words = {name: str(state) for name, state in found.items()}
    assert words["loops"].startswith("computes (") and words["holds the lock"].startswith("computes (")
    assert words["waits"] == words["offers nothing"] == "waits"
    assert words["has a child"] == f"waits for what it has started, which is stopped (pid {children[0].pid})"
    assert words["is stopped"] == "is stopped (SIGSTOP, or a debugger)" and words["gone"] == "has ended"
    assert {name for name, state in found.items() if state.stacks} == set(bodies)
    for name in bodies:
        threads = threads_of(found[name].stacks)
        assert len(threads) == 2 and any("loop" in frame for frame in threads[1]), found[name].stacks
    assert all(process.poll() is None for process in processes.values()), "the signal has ended a process"


def test_what_was_written_before_is_not_told_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_state, "WATCHED_S", 0.05)
    patient(monkeypatch)
    process = start(body=WAITS)
    ready(process)
    first, second = examined([process.pid])[0], examined([process.pid])[0]
    assert first.stacks.count("in loop") == second.stacks.count("in loop") == 1


def test_the_method_s_thread_is_found_and_our_innermost_frame_is_told() -> None:
    here = process_state.ROOT
    stacks = f"""Thread 0x1 (most recent call first):
  File "{here}/cluster/ranks/worker.py", line 210 in watch

Current thread 0x2 (most recent call first):
  File "{here}/.venv/lib/python3.11/site-packages/torch/distributed/distributed_c10d.py", line 9 in all_reduce
  File "{here}/.venv/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 8 in wrapper
  File "{here}/.venv/lib/python3.11/site-packages/deepspeed/comm/torch.py", line 7 in all_reduce
  File "{here}/.venv/lib/python3.11/site-packages/deepspeed/comm/comm.py", line 6 in all_reduce
  File "{here}/roles/zero/sharded.py", line 5 in backward
  File "{here}/roles/actor.py", line 4 in update
  File "{here}/cluster/ranks/worker.py", line 3 in _watched
"""
    frames = ProcessState(1, "sleeping", 0.0, stacks).method_frames
    assert frames[:3] == [
        "cluster/ranks/worker.py:3 _watched",
        "roles/actor.py:4 update",
        "roles/zero/sharded.py:5 backward",
    ]
    assert innermost(frames) == (
        "roles/zero/sharded.py:5 backward > … > comm/comm.py:6 all_reduce > comm/torch.py:7 all_reduce > "
        "distributed/c10d_logger.py:8 wrapper > distributed/distributed_c10d.py:9 all_reduce"
    )
    assert ProcessState(1, "sleeping").method_frames == [] and innermost([]) == ""
    assert frame_name("/elsewhere/lib/a/b.py", 1, "f") == "a/b.py:1 f"


def test_words_for_what_holds_a_process() -> None:
    assert str(ProcessState(1, "disk-sleep")) == "waits for a disk or another device"
    assert str(ProcessState(1, "tracing-stop")) == "is stopped (SIGSTOP, or a debugger)"
    assert str(ProcessState(1, "running", 1.5)) == "computes (150% of a CPU)"


def test_a_stack_is_told_without_reading_a_source_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may be what hangs."""

    def blocked(*_: object) -> None:
        raise AssertionError("a file was read")

    for name in ("getlines", "getline", "checkcache", "updatecache"):
        monkeypatch.setattr(linecache, name, blocked)
    frames = frames_of(sys._getframe())
    assert "test_process_state.py" in frames[-1] and "test_a_stack_is_told" in frames[-1] and len(frames) > 3
    assert frames_of(None) == []
