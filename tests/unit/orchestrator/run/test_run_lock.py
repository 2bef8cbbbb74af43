"""One run at a time writes to a folder: the others are told who, and no crash keeps it locked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

import orchestrator.run.run_lock as run_lock
from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.run.run_lock import LOCK, RunLock, check_free, held, seems_held

HOLDS = """
import sys, time
from pathlib import Path
from orchestrator.run.run_lock import RunLock
RunLock(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock is void after ten minutes, which no busy machine takes, but where a test waits for that."""
    monkeypatch.setattr(run_lock, "LOCK_LOOK_S", 0.01)
    monkeypatch.setattr(run_lock, "BEAT_S", 0.03)
    monkeypatch.setattr(run_lock, "VOID_S", 600.0)


def elsewhere(run_dir: Path, **facts: Any) -> None:
    """The lock of a process on another machine."""
    holder = {"host": "node-7", "pid": 11, "born": 0.0, "place": "there", "job": "", "since": "noon", "key": "k"}
    (run_dir / LOCK).write_text(json.dumps({**holder, **facts}))


def test_a_folder_has_one_holder_who_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with held(tmp_path / "run"):
        said = rf"run_dir=.*run is in use by pid {os.getpid()} on .* \(Slurm job 42\), since 2"
        for again in (lambda: RunLock(tmp_path / "run").take(), lambda: check_free(tmp_path / "run")):
            with pytest.raises(ConfigError, match=said):
                again()
    assert list((tmp_path / "run").iterdir()) == []
    with held(tmp_path / "run"):
        pass


def test_the_name_of_a_job_on_a_cluster_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = json.dumps({"metadata": {"job_submission_id": "smoke-12"}})
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", variable)
    with held(tmp_path), pytest.raises(ConfigError, match="Ray job smoke-12"):
        check_free(tmp_path)


def test_after_a_kill_on_this_machine_the_folder_is_free_at_once(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"in use by pid {process.pid} on"):
        RunLock(tmp_path).take()
    process.send_signal(signal.SIGSTOP)  # a process that stands still is alive
    with pytest.raises(ConfigError, match=f"in use by pid {process.pid} on"):
        RunLock(tmp_path).take()
    process.kill()
    while run_lock._read(
        tmp_path / LOCK
    ).alive:  # until the kernel has ended it; it stays a zombie until it is waited for
        time.sleep(0.001)
    began = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - began < 60
    process.wait()


def test_another_process_with_the_same_number_is_not_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "VOID_S", 0.2)
    elsewhere(tmp_path, place=run_lock._place(), pid=os.getpid(), born=1.0)
    with held(tmp_path):
        pass


@contextmanager
def touched(folder: Path, every_s: float) -> Iterator[None]:
    """Context in which somebody touches the lock again and again."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(every_s):
            os.utime(folder / LOCK)

    holder = threading.Thread(target=beat)
    holder.start()
    try:
        yield
    finally:
        over.set()
        holder.join()


def test_a_set_clock_takes_the_lock_from_no_living_holder(tmp_path: Path) -> None:
    """A process's start, as psutil tells it, moves with the machine's clock."""
    born = psutil.Process().create_time() - 60.0
    elsewhere(tmp_path, place=run_lock._place(), pid=os.getpid(), born=born)
    with touched(tmp_path, 0.002):
        assert seems_held(tmp_path)
        with pytest.raises(ConfigError, match="is in use by pid"):
            check_free(tmp_path)


@pytest.mark.parametrize("lock", ["", "{}", "[1]", '{"host": 1}', "\0"])
def test_a_lock_that_cannot_be_read_is_void_after_a_while(
    tmp_path: Path, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "VOID_S", 0.2)
    (tmp_path / LOCK).write_text(lock)
    with held(tmp_path):
        assert run_lock._read(tmp_path / LOCK).pid == os.getpid()


def test_a_holder_elsewhere_is_waited_for_until_it_moves_or_its_lock_is_void(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path)
    with (
        touched(tmp_path, 0.02),
        pytest.raises(ConfigError, match="in use by pid 11 on node-7, since noon"),
    ):
        RunLock(tmp_path).take()
    monkeypatch.setattr(run_lock, "VOID_S", 0.2)
    began = time.monotonic()
    with held(tmp_path):
        assert time.monotonic() - began < 60


def test_a_lock_that_another_user_keeps_to_himself_is_judged_by_its_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(tmp_path)

    def denied(*unused: Any, **more: Any) -> Any:
        raise PermissionError

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(Path, "read_text", denied)
    assert seems_held(tmp_path)
    os.utime(tmp_path / LOCK, (0, 0))
    assert not seems_held(tmp_path)


def test_a_run_that_goes_on_touches_its_lock(tmp_path: Path) -> None:
    with held(tmp_path) as lock:
        os.utime(tmp_path / LOCK, (0, 0))
        while not run_lock._touched(tmp_path / LOCK):
            time.sleep(0.01)
        lock.check()


def test_of_many_that_find_a_void_lock_one_gets_it(tmp_path: Path) -> None:
    for _ in range(5):
        elsewhere(tmp_path, place=run_lock._place(), pid=2**30, born=1.0)  # a number that no process has
        ready = threading.Barrier(8)

        def contend(ready: threading.Barrier = ready) -> RunLock | None:
            lock = RunLock(tmp_path)
            ready.wait()
            try:
                lock.take()
            except ConfigError:
                return None
            return lock

        with ThreadPoolExecutor(8) as pool:
            found = [lock for lock in (each.result() for each in [pool.submit(contend) for _ in range(8)]) if lock]
        assert len(found) == 1
        found[0].check()
        found[0].release()
        assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_read_once_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, failures = run_lock._read, [run_lock.NOBODY]
    monkeypatch.setattr(run_lock, "READ_AGAIN_S", 0.0)
    with held(tmp_path) as lock:
        monkeypatch.setattr(run_lock, "_read", lambda file: failures.pop() if failures else read(file))
        lock.check()
        assert not failures
        failures += [run_lock.NOBODY] * run_lock.READS
        with pytest.raises(TetrarchError, match="taken over by pid 0 on an unknown host"):
            lock.check()


def test_a_run_that_stood_still_is_told_that_another_has_taken_over(tmp_path: Path) -> None:
    with held(tmp_path) as lock:
        elsewhere(tmp_path)
        with pytest.raises(TetrarchError, match=r"taken over by pid 11 on node-7.* no sign of life"):
            lock.check()
    assert run_lock._read(tmp_path / LOCK).key == "k", "the lock of another run stays"


def test_a_lock_that_was_removed_by_hand_is_taken_again(tmp_path: Path) -> None:
    with held(tmp_path) as lock:
        (tmp_path / LOCK).unlink()
        lock.check()
        with pytest.raises(ConfigError, match="in use"):
            check_free(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"run_dir=.* cannot be written to .*choose another"), held(tmp_path / "file"):
        pass
