"""The lock of `run_dir`: only one run at a time writes to it. A folder flows in; a ConfigError that says who holds it
flows out.

The lock is a file that is created only where none is, which also holds on shared file systems. Its holder touches it
every few seconds. On the holder's own machine the lock is void as soon as the process has ended; elsewhere, or if
another process seems to have its number, once it has not been touched for `VOID_S`. All ages are differences between
times that the file system itself has given.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from cluster.runtime.last_resort import at_most
from orchestrator.errors import ConfigError, TetrarchError

LOCK = "lock.json"
BEAT_S = 5.0
"""Seconds between two signs of life of the holder."""
VOID_S = 45.0
"""Seconds without a sign of life after which a lock is void."""
LOCK_LOOK_S = 0.5
READS, READ_AGAIN_S = 5, 1.0
"""How often a lock that cannot be read is read again, and after how many seconds."""
CLOCK_S = 2.0
"""By how much the start of one process may differ between two looks. It differs by more if the machine's clock is set,
since psutil counts it from the boot."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a lock belongs to."""

    host: str
    pid: int
    born: float
    """When the process was started, in seconds since 1970: another process may have got the same number later."""
    place: str
    """The machine's boot and the namespace in which the number of the process means something."""
    job: str
    since: str
    key: str
    """Of this lock alone."""

    def __str__(self) -> str:
        return f"pid {self.pid} on {self.host}{f' ({self.job})' if self.job else ''}, since {self.since}"

    @property
    def here(self) -> bool:
        """Whether this process can see whether the holder is alive. Not if a process with its number has started at
        another time: it is another one, or the clock was set."""
        if not self.place or self.place != _place():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.born) < CLOCK_S
        except (psutil.Error, TypeError, ValueError):
            return True  # there is no such process

    @property
    def alive(self) -> bool:
        """Whether the process of a holder that is here still runs."""
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except (psutil.Error, TypeError, ValueError):
            return False


NOBODY = Holder("an unknown host", 0, 0.0, "", "", "an unknown time", "")
"""Of a lock that cannot be read."""


class RunLock:
    """The lock of one folder, held by this process from `take` to `release`."""

    def __init__(self, run_dir: Path, answers_s: float = 1800.0) -> None:
        """`answers_s`: seconds in which the disk must answer; then the process ends."""
        self._run_dir, self._file, self._me, self._answers_s = run_dir, run_dir / LOCK, _myself(), answers_s
        self._released = threading.Event()

    def take(self) -> None:
        """ConfigError if another process holds it."""
        while not self._created():
            void = check_free(self._run_dir)
            if void is not None:
                self._remove(void)
        threading.Thread(target=self._beat, name="run-lock", daemon=True).start()

    def check(self) -> None:
        """TetrarchError if another run has taken the folder over. That can only be where this one stood still."""
        with at_most(self._answers_s, f"reading {self._file}"):
            for _ in range(READS):
                holder = _read(self._file)
                if holder is not NOBODY:
                    break
                time.sleep(READ_AGAIN_S)  # a shared file system may fail once (ESTALE, EIO)
            if holder is None and self._created():
                return
        if (holder or NOBODY).key != self._me.key:
            raise TetrarchError(
                f"run_dir={self._run_dir} has been taken over by {holder or NOBODY}: this run had given no "
                f"sign of life for {VOID_S:g} s"
            )

    def release(self) -> None:
        """Another run may write to the folder."""
        self._released.set()
        with suppress(OSError), at_most(self._answers_s, f"removing {self._file}"):
            if (_read(self._file) or NOBODY).key == self._me.key:
                self._file.unlink()

    def _created(self) -> bool:
        try:
            with self._file.open("x", encoding="utf-8") as file:
                json.dump(asdict(self._me), file)
        except FileExistsError:
            return False
        return True

    def _remove(self, void: Holder) -> None:
        """Remove the lock of `void`. Only the process that makes the file named for that lock may, so it is still the
        same one that is removed."""
        right = self._file.with_name(f"{LOCK}.{re.sub(r'[^0-9a-z]', '', str(void.key))[:32]}")
        try:
            right.touch(exist_ok=False)
        except FileExistsError:
            time.sleep(LOCK_LOOK_S)
            if self._age(right) > VOID_S:  # of a process that was killed before it came to the end of this function
                right.unlink(missing_ok=True)
            return
        try:
            if _read(self._file) == void and (void is not NOBODY or self._age(self._file) > VOID_S):
                self._file.unlink(missing_ok=True)
        finally:
            right.unlink(missing_ok=True)

    def _age(self, file: Path) -> float:
        touched = _touched(file)
        return 0.0 if touched is None else _now(self._run_dir) - touched

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with suppress(OSError):
                if (_read(self._file) or NOBODY).key == self._me.key:
                    os.utime(self._file)


@contextmanager
def held(run_dir: Path, answers_s: float = 1800.0) -> Iterator[RunLock]:
    """Context in which this process alone writes to `run_dir`. ConfigError if another run does. `answers_s`: seconds in
    which the disk must answer."""
    lock = RunLock(run_dir, answers_s)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:
        raise ConfigError(f"run_dir={run_dir} cannot be written to ({error}); choose another one") from error
    try:
        yield lock
    finally:
        lock.release()


def check_free(run_dir: Path) -> Holder | None:
    """ConfigError if a run holds the lock of `run_dir`. The holder of a void lock, or None if there is none.

    A holder that is not seen from here is waited for: until it touches the lock, or the lock is void.
    """
    file, first = run_dir / LOCK, None
    while (holder := _read(file)) is not None:
        seen, here = (holder.key, _touched(file)), holder.here
        if holder.alive if here else seen != (first or seen):
            raise ConfigError(f"run_dir={run_dir} is in use by {holder}; wait for it, end it, or choose another folder")
        if here or (seen[1] is not None and _now(run_dir) - seen[1] > VOID_S):
            return holder
        first = seen
        time.sleep(LOCK_LOOK_S)
    return None


def seems_held(run_dir: Path) -> bool:
    """Whether a run holds the lock of `run_dir`, without waiting and without writing: a holder that is not seen from
    here is judged by this machine's clock."""
    file = run_dir / LOCK
    holder, touched = _read(file), _touched(file)
    if holder is None or touched is None:
        return False
    return holder.alive if holder.here else time.time() - touched < VOID_S


def state_now(run_dir: Path, status: str) -> str:
    """The state that a run is in, of which its files say `status`; `interrupted`: it ended without saying so. Looks
    only, as `seems_held` does."""
    if seems_held(run_dir):
        return "running"
    return "interrupted" if status == "running" else status


def wait_until_free(run_dirs: Sequence[Path], within_s: float, told: Callable[[ConfigError], object]) -> None:
    """Wait until no run holds the lock of any of `run_dirs`. ConfigError if one still does after `within_s` seconds;
    `told` is called with the first."""
    until, waits = time.monotonic() + within_s, False
    while True:
        try:
            for run_dir in run_dirs:
                check_free(run_dir)
            return
        except ConfigError as error:
            if time.monotonic() > until:
                raise
            if not waits:
                told(error)
            waits = True
            time.sleep(LOCK_LOOK_S)


def _read(file: Path) -> Holder | None:
    """The holder of a lock; None if there is no lock."""
    try:
        return Holder(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError):
        return NOBODY


def _touched(file: Path) -> float | None:
    """When the holder gave its last sign of life. The file is opened, since a shared file system may only then ask;
    another user's may not be."""
    try:
        with file.open("rb") as opened:
            return os.fstat(opened.fileno()).st_mtime
    except PermissionError:
        return file.stat().st_mtime
    except OSError:
        return None


def _now(run_dir: Path) -> float:
    """The file system's own time."""
    probe = run_dir / f"{LOCK}.{secrets.token_hex(8)}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _myself() -> Holder:
    now, pid = datetime.now(UTC).isoformat(timespec="seconds"), os.getpid()
    born = psutil.Process(pid).create_time()
    return Holder(socket.gethostname(), pid, born, _place(), _job(), now, secrets.token_hex(8))


def _place() -> str:
    """Empty where it cannot be known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _job() -> str:
    """The job of a scheduler that this process belongs to; empty if there is none."""
    with suppress(ValueError, KeyError, TypeError):
        metadata: Any = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])["metadata"]
        return f"Ray job {metadata['job_submission_id']}"
    job = os.environ.get("SLURM_JOB_ID")
    return f"Slurm job {job}" if job else ""
