"""`make soak` on processes of a few lines: what grows is noticed, what does not is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.soak import Flatness, Sample, Watched, flatness, kills, table

GROWS = {
    "nothing": "pass",
    "memory": "kept.append(bytearray(os.urandom(2**20)))",
    "handles": "kept.append(open(os.devnull))",
    "threads": "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
}
RANK = """
import json, os, pathlib, sys, threading, time
run, grow, kept = pathlib.Path(sys.argv[1]), sys.argv[2], []
(run / "logs/actor-0.log").write_text(f"--- actor rank 0, pid {os.getpid()}, \\n")
with (run / "metrics.jsonl").open("w") as metrics:
    for step in range(1, 21):
        exec(grow)
        metrics.write(json.dumps({"step": step}) + "\\n")
        metrics.flush()
        print(step, flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("what", GROWS)
def test_what_a_real_process_keeps_is_noticed(tmp_path: Path, what: str) -> None:
    (tmp_path / "logs").mkdir()
    watched, command = Watched(tmp_path), [sys.executable, "-c", RANK, str(tmp_path), GROWS[what]]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in process.stdout:  # a step
            watched.look(os.getpid())
            process.stdin.write("\n")
            process.stdin.flush()
    found = flatness("actor-0", watched.samples["actor-0"], 4, 4)
    assert found is not None and found.flat == (what == "nothing"), (found, watched.samples["actor-0"])


def sample(step: int, **held: int) -> Sample:
    return Sample(step, **{"bytes": 100, "handles": 20, "threads": 10, **held})


@pytest.mark.parametrize(
    ("held", "flat"),
    [
        (lambda step: {"bytes": 300 if step < 10 else 100}, True),  # before the first window
        (lambda step: {"bytes": 100 + step // 20}, True),
        (lambda step: {"bytes": 100 + step // 10}, False),
        (lambda step: {"bytes": 900 if step == 50 else 100}, True),  # once
        (lambda step: {"bytes": 900 if 40 < step < 60 else 100}, False),
        (lambda step: {"handles": 20 + step // 45}, False),
        (lambda step: {"threads": 10 + step // 90}, False),
    ],
)
def test_flat_is_within_five_percent_after_the_warm_up(held: Callable[[int], dict[str, int]], flat: bool) -> None:
    found = flatness("actor-0", [sample(step, **held(step)) for step in range(1, 101)], 10, 5)
    assert found is not None and found.flat == flat


def test_who_was_not_there_all_the_time_is_left_out() -> None:
    assert flatness("a", [sample(step) for step in range(60, 101)], 10, 5) is None
    assert flatness("a", [], 10, 5) is None


def test_one_kill_in_every_hundred_from_the_seed() -> None:
    planned = kills(2000, 100, 0)
    assert [kill.step // 100 for kill in planned] == list(range(20)) and planned == kills(2000, 100, 0)
    assert planned != kills(2000, 100, 1) and len({kill.victim for kill in planned}) > 5


def test_the_table_says_what_is_not_flat() -> None:
    one = Flatness("actor-0", sample(1, bytes=2**20), sample(9, bytes=2**21))
    assert table([one]).splitlines()[-1] == "| actor-0 | 1.0 | 2.0 | 20 | 20 | 10 | 10 | **no** |"
