"""A driver that hangs in the system is ended, and says why."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cluster.runtime import last_resort
from cluster.runtime.last_resort import at_most

DRIVER = """
import subprocess, sys
from cluster.runtime import last_resort
from cluster.runtime.last_resort import at_most
last_resort.CHECKED_S = 0.02
child = subprocess.Popen(["sleep", "600"])
print(child.pid, flush=True)
def write():
    with at_most(0.2, "writing the metrics"), open(sys.argv[1], "w") as file:
        file.write("a line that nobody reads")
try:
    {first}
except ValueError:
    write()
write()
"""


@pytest.mark.parametrize("first", ["raise ValueError('critic rank 1 died')", "pass"])
def test_a_disk_that_does_not_answer_ends_the_driver_with_what_it_has_started(tmp_path: Path, first: str) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    script = DRIVER.format(first=first)
    words = [sys.executable, "-c", script, tmp_path / "metrics.jsonl"]
    driver = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert driver.returncode == 1
    head, *lines = driver.stderr.splitlines()
    assert head == "error: the run failed"
    assert (lines[0] == "  critic rank 1 died") == first.startswith("raise"), "the first error is told too"
    hangs, advice = lines[-2:]
    assert "(process " in hangs and " is writing the metrics for more than 0.2 s, at " in hangs and "write" in hangs
    assert advice == "  the disk of run_dir does not answer; go on with --resume once it does"
    child, until = int(driver.stdout), time.monotonic() + 60
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "what it has started lives on"
        time.sleep(0.01)


def test_what_ends_in_time_is_left_alone() -> None:
    with at_most(1800.0, "waiting"), at_most(1800.0, "waiting"):
        assert len(last_resort._UNDER_WAY) == 2
    with pytest.raises(OSError), at_most(math.inf, "waiting"):
        raise OSError
    assert not last_resort._UNDER_WAY
