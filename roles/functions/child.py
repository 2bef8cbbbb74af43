"""A child process with a function or a class of the user. If it does not answer, it is killed and started again.

A request flows in, the child's answer flows out, or CallFailed; after that, another call is possible. The child leads a
process group: those that it has started (a pool of workers, say) end with it. They have its pipes too, so that as long
as one lives, no reading from them would end.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

from roles.functions.child_program import Message

LOAD_DEADLINE_S = 300.0
"""Seconds in which the user's file must be imported, with everything that it imports."""


ENDING_S = 5.0
"""For a process whose pipes are closed to end by itself, so that its own exit status is told."""
ENDING_POLL_S = 0.01


class CallFailed(Exception):
    """One call failed; the next call starts a new process if it must."""


class NoAnswer(CallFailed):
    """There was none in time."""


class LoadFailed(Exception):
    """The user's file cannot be imported; another attempt would fail too."""


class LoadUnfinished(LoadFailed):
    """The user's file was not imported in time, which a faster machine may do."""


class Child:
    """One process that has imported the user's file."""

    def __init__(self, worker: ModuleType, path: str, name: str, load_s: float = LOAD_DEADLINE_S) -> None:
        """`worker`: the module that the process runs. Raises LoadFailed if the file cannot be imported within `load_s`
        seconds."""
        self._load_s = load_s
        assert worker.__file__ is not None
        self._command = [sys.executable, "-P", str(Path(worker.__file__)), path, name]
        self._process: subprocess.Popen[bytes] | None = None
        self._start()

    def call(self, request: Any, deadline_s: float) -> Any:
        """The answer; CallFailed if there is none in time, or if the user's code raised."""
        if self._process is None or _has_ended(self._process):
            self.close()
            self._start()
        return self._exchange(request, deadline_s)

    def close(self) -> None:
        """End the process, and what it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill_group(process)
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what it has not read
                pipe.close()

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._command, stdin=pipe, stdout=pipe, env=environment, start_new_session=True
        )
        try:
            self._exchange(None, self._load_s)
        except CallFailed as error:
            self.close()
            raise (LoadUnfinished if isinstance(error, NoAnswer) else LoadFailed)(str(error)) from None

    def _exchange(self, request: Any, deadline_s: float) -> Any:
        """Send a request (None: only wait for the first message) and return the answer, or kill the child and raise."""
        process = self._process
        assert process is not None
        answers: list[Message] = []
        waiting = threading.Thread(target=_talk, args=(process, request, answers), daemon=True)
        waiting.start()
        waiting.join(deadline_s)
        if not answers:
            hung = waiting.is_alive()
            if not hung:  # a process closes its pipes before it has ended
                until = time.monotonic() + ENDING_S
                while not _has_ended(process) and time.monotonic() < until:
                    time.sleep(ENDING_POLL_S)
            status = _kill_group(process)
            waiting.join(ENDING_S)
            if waiting.is_alive():  # a process that has left the group has the pipe; to close it would wait for that
                self._process = None
            self.close()
            if hung:
                raise NoAnswer(f"no answer within {deadline_s:g} s")
            raise CallFailed(f"its process ended ({_status(status)})")
        kind, content = answers[0]
        if kind == "error":
            raise CallFailed(_last_lines(content))
        return content


def _talk(process: subprocess.Popen[bytes], request: Any, answers: list[Message]) -> None:
    """Exchange one message; runs in a thread because pipes have no timeout. `answers` stays empty if the child
    ended."""
    assert process.stdin is not None and process.stdout is not None
    try:
        if request is not None:
            pickle.dump(request, process.stdin)
            process.stdin.flush()
        answers.append(pickle.load(process.stdout))
    except (OSError, EOFError, pickle.UnpicklingError, ValueError):
        return


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended. Its status is not taken: until then the system gives its number, which is that of
    its group, to no other."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def _kill_group(process: subprocess.Popen[bytes]) -> int:
    """Kill the process and those of its group, once; its exit status."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def times(count: int) -> str:
    """`once` or `N times`, for messages."""
    return "once" if count == 1 else f"{count} times"


def _status(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _last_lines(text: str, count: int = 12) -> str:
    """The last line of a traceback (the exception) first, then the last `count` lines."""
    lines = text.rstrip().splitlines()
    return "\n".join([lines[-1], *(f"  {line}" for line in lines[-count:])])
