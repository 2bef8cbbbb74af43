"""Memory that is free inside a process goes back to the system, and looking for it costs little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from roles.zero import host_heap
from roles.zero.host_heap import TRIM_COST_SHARE, HostHeap

ROOT = Path(__file__).resolve().parents[4]

HOLES = """
import psutil
from roles.zero.host_heap import HEAP

def held():
    return psutil.Process().memory_info().rss / 2**20

blocks = [bytearray(b"1") * 100_000 for _ in range(2000)]
del blocks[1::2], blocks[1::2]  # three of four, with one in use between them
before = held()
HEAP.give_back()
print(before - held())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives back what lies between blocks in use")
def test_pages_between_blocks_in_use_go_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 0.9 * 1500 * 0.1  # MB, of the 150 that are free


def test_looking_for_free_pages_takes_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    clock = {"wall": 100.0, "processor": 5.0}

    def malloc_trim(kept: int) -> None:
        looks.append(kept)
        clock["wall"] += 1.0  # on a busy machine
        clock["processor"] += 0.1

    clocks = {"monotonic": lambda: clock["wall"], "thread_time": lambda: clock["processor"]}
    monkeypatch.setattr(host_heap, "time", SimpleNamespace(**clocks))
    monkeypatch.setattr(host_heap, "_libc", lambda: SimpleNamespace(malloc_trim=malloc_trim))
    heap = HostHeap()
    heap.give_back()
    clock["wall"] += 0.99 * 0.1 / TRIM_COST_SHARE
    heap.give_back()
    assert looks == [0]
    clock["wall"] += 0.02 * 0.1 / TRIM_COST_SHARE
    heap.give_back()
    assert looks == [0, 0]


def test_nothing_happens_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_heap, "_libc", lambda: None)
    HostHeap().give_back()
