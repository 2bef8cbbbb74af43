"""What the system knows of a process on this node, also of one that cannot answer: its state, its use of the CPU, and
the Python stacks of its threads.

A process id flows in, a `ProcessState` flows out. Nothing is asked of the process itself: Python's own fault handler
writes the stacks, in C, as soon as a signal comes, into a file in memory that its node's processes can read.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import statistics
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

SIGNAL = signal.SIGUSR1
"""Has a process that has called `offer_stacks` write its stacks; others it would end, so they never get it."""
STACKS = "tetrarch-stacks"
"""Name of the file in memory."""
WATCHED_S = 0.5
"""Seconds for which processes are watched."""
DUMPED_S = 2.0
"""Seconds in which a process must have written its stacks."""
STILL_S = 0.1
"""Seconds without more of them after which the stacks are complete."""
PEEK_S = 0.02
"""Seconds between two looks."""
LEAST_CPU = 0.02
"""Share of a CPU that a process gets if it computes, however busy the machine is."""
THREAD = re.compile(r"^(?:Current thread|Thread) .*\(most recent call first\):$")
FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<name>.*)$')
THREADS = {"R": psutil.STATUS_RUNNING, "D": psutil.STATUS_DISK_SLEEP}
RUNS_A_METHOD = re.compile(r"cluster/ranks/worker\.py:\d+ _watched")
"""The frame below every method of a role."""
ROOT = str(Path(__file__).resolve().parents[2])
OURS = re.compile(r"(roles|orchestrator|tests)/")
TOLD_FRAMES = 4
"""Frames of a stack that an error shows."""


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process: `ProcessState(4711, "sleeping", 0.01, "Thread 0x7f… …")`."""

    pid: int
    status: str
    """As psutil calls it: `running`, `sleeping`, `disk-sleep`, `stopped`, `zombie`; `gone` if there is none. Of several
    threads, what most of the time one of them was."""
    cpu: float = 0.0
    """CPUs that it uses, over all its threads."""
    stacks: str = ""
    """The Python stacks of all its threads, innermost frames first; empty if it did not write them."""
    stopped_children: tuple[int, ...] = ()
    """Process ids of those that it has started and that are stopped."""

    @property
    def stopped(self) -> bool:
        """Whether it stands still until someone lets it go on."""
        return self.status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)

    @property
    def ended(self) -> bool:
        """Whether it runs no more."""
        return self.status in ("gone", psutil.STATUS_ZOMBIE)

    @property
    def method_frames(self) -> list[str]:
        """The frames of the thread that runs a method of the role, outermost first; empty if none does."""
        for thread in threads_of(self.stacks):
            if any(RUNS_A_METHOD.match(frame) for frame in thread):
                return thread
        return []

    def __str__(self) -> str:
        """In words that follow "its process"."""
        if self.stopped:
            return "is stopped (SIGSTOP, or a debugger)"
        if self.ended:
            return "has ended"
        if self.status == psutil.STATUS_DISK_SLEEP:
            return "waits for a disk or another device"
        children = ", ".join(map(str, self.stopped_children))
        waits = f"waits for what it has started, which is stopped (pid {children})" if children else "waits"
        return f"computes ({self.cpu:.0%} of a CPU)" if self.status == psutil.STATUS_RUNNING else waits


def offer_stacks() -> None:
    """Let this process write the stacks of all its threads whenever the signal comes."""
    if hasattr(os, "memfd_create"):  # Linux
        faulthandler.register(SIGNAL, file=os.memfd_create(STACKS), all_threads=True)


def examined(pids: Sequence[int]) -> list[ProcessState]:
    """The states of processes of this node; takes up to `WATCHED_S` + `DUMPED_S` seconds for all of them together."""
    files, used = [_stacks_file(pid) for pid in pids], [_cpu_seconds(pid) for pid in pids]
    sizes, began = [_size(file) for file in files], time.monotonic()
    for pid, file in zip(pids, files, strict=True):
        if file is not None and not _state(pid).stopped:
            with suppress(OSError):
                os.kill(pid, SIGNAL)
    seen: list[list[str]] = [[] for _ in pids]
    while time.monotonic() < began + WATCHED_S:
        time.sleep(PEEK_S)
        for pid, states in zip(pids, seen, strict=True):
            states.append(_of_threads(pid))
    passed = time.monotonic() - began
    shares = [max(_cpu_seconds(pid) - before, 0.0) / passed for pid, before in zip(pids, used, strict=True)]
    found = []
    for pid, file, size, share, states in zip(pids, files, sizes, shares, seen, strict=True):
        status = _state(pid).status
        if status in (psutil.STATUS_RUNNING, psutil.STATUS_SLEEPING, psutil.STATUS_DISK_SLEEP):
            status = statistics.mode(states) if share >= LEAST_CPU else _state(pid).status
        stacks = "" if file is None or _state(pid).stopped else _written(file, size, began + WATCHED_S + DUMPED_S)
        found.append(ProcessState(pid, status, share, stacks, _stopped_children(pid)))
    return found


def threads_of(stacks: str) -> list[list[str]]:
    """For each thread its frames, outermost first, as `frame_name` calls them."""
    threads: list[list[str]] = []
    for line in stacks.splitlines():
        frame = FRAME.match(line)
        if THREAD.match(line):
            threads.append([])
        elif frame is not None and threads:
            threads[-1].insert(0, frame_name(frame["file"], int(frame["line"]), frame["name"]))
    return threads


def frame_name(file: str, line: int, function: str) -> str:
    """A frame, such as `roles/actor.py:71 update`: of our own code with the path in the repository, else with the last
    folder."""
    ours = file.startswith(f"{ROOT}/") and "/site-packages/" not in file
    return f"{file.removeprefix(f'{ROOT}/') if ours else '/'.join(file.split('/')[-2:])}:{line} {function}"


def frames_of(frame: FrameType | None) -> list[str]:
    """The frames of a thread, outermost first. Reads no source file: the disk may be what hangs."""
    walked = traceback.walk_stack(frame) if frame is not None else ()
    return [frame_name(one.f_code.co_filename, line, one.f_code.co_name) for one, line in walked][::-1]


def innermost(frames: Sequence[str]) -> str:
    """The innermost of some frames, and before them the innermost one of our own code."""
    last, ours = frames[-TOLD_FRAMES:], [frame for frame in frames if OURS.match(frame)]
    return " > ".join([*([ours[-1], "…"] if ours and ours[-1] not in last else []), *last])


def _state(pid: int) -> ProcessState:
    try:
        return ProcessState(pid, psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return ProcessState(pid, "gone")


def _of_threads(pid: int) -> str:
    """What the threads of a process do at this moment; psutil looks at the first one alone."""
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):  # it has ended
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return next((status for letter, status in THREADS.items() if letter in states), psutil.STATUS_SLEEPING)


def _cpu_seconds(pid: int) -> float:
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _stopped_children(pid: int) -> tuple[int, ...]:
    try:
        started = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return ()
    return tuple(child.pid for child in started if _state(child.pid).stopped)


def _stacks_file(pid: int) -> Path | None:
    """The file in memory of a process; None if it has none."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                if f"memfd:{STACKS}" in os.readlink(descriptor):
                    return descriptor
    return None


def _size(file: Path | None) -> int:
    try:
        return file.stat().st_size if file is not None else 0
    except OSError:
        return 0


def _written(file: Path, begin: int, until: float) -> str:
    """What comes into the file from `begin` on, once no more comes: it comes in many pieces."""
    size, since = begin, time.monotonic()
    while (now := time.monotonic()) < until and (size == begin or now < since + STILL_S):
        if _size(file) != size:
            size, since = _size(file), now
        time.sleep(PEEK_S)
    try:
        with file.open("rb") as stacks:
            stacks.seek(begin)
            return stacks.read().decode(errors="replace")
    except OSError:
        return ""
