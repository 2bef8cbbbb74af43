"""Memory of processes, measured on real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster.ranks import host_memory
from cluster.ranks.host_memory import FRESH_DRAINS, MemorySampler, held_bytes, kill_tree, peak_of_sum, tree

MIB = 2**20


def test_peak_of_sum_adds_what_was_held_at_the_same_time() -> None:
    assert peak_of_sum([{1: 5, 3: 1}, {2: 2, 3: 4, 4: 3}]) == 7
    assert peak_of_sum([{1: 5}, {9: 5}]) == 10  # the first has not said otherwise since
    assert peak_of_sum([]) == 0


def test_sampler_sees_the_process_and_its_children() -> None:
    sampler = MemorySampler()
    sampler.stop()  # a sample of its thread that takes more than a second would count for the second in which it began
    before = max(sampler.drain().values())
    child = subprocess.Popen(
        [sys.executable, "-c", "x = b'x' * (100 * 2**20); print('ready', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    first, *others = [process.pid for process in tree(os.getpid())]
    assert first == os.getpid() and child.pid in others
    sampler.sample()
    with_child = max(sampler.drain().values())
    assert 90 * MIB < with_child - before < 200 * MIB
    child.communicate(b"\n")
    time.sleep(1)  # the next sample is of another second
    sampler.sample()
    sampler.drain()  # with those of the child
    assert max(sampler.drain().values()) < before + 50 * MIB


def test_a_run_that_ends_before_the_next_sample_has_told_what_it_held() -> None:
    sampler = MemorySampler()
    sampler.stop()
    before = max(sampler.drain().values())
    held = b"x" * (100 * MIB)
    assert max(sampler.drain().values()) - before > 90 * MIB
    del held
    for _ in range(FRESH_DRAINS):
        sampler.drain()
    taken = sampler.drain()
    assert sampler.drain() == taken  # a report of a long run costs no sample


class TheirProcess:
    """One of another user, which a reward function has started with sudo, say."""

    def memory_full_info(self) -> None:
        raise psutil.AccessDenied(1)

    kill = memory_full_info

    def memory_info(self) -> SimpleNamespace:
        return SimpleNamespace(rss=7)


def test_processes_of_another_user_are_counted_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs: Any = TheirProcess()
    assert held_bytes(theirs) == 7
    killed: list[int] = []
    mine = SimpleNamespace(kill=lambda: killed.append(1))
    monkeypatch.setattr(host_memory, "tree", lambda pid: [theirs, mine])
    kill_tree(1)
    assert killed == [1]
