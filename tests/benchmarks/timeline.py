"""Milliseconds of the timeline of a step: what ranks and driver spend on it, and what the thread takes meanwhile.

.venv/bin/python -m tests.benchmarks.timeline [--ranks 8 32 128] [--spans 200]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from cluster.ranks.identity import Identity
from cluster.ranks.usage import CallOrigin, InnerSpan, RankCall, RankUsage
from orchestrator.timeline.diary import Timeline
from orchestrator.timeline.part_of_run import PartOfRun
from orchestrator.timeline.trace_file import TRACE_FILE
from roles.spans import span, take_spans
from tests.benchmarks.samples_written import TRIES, milliseconds

CALLS = 20
"""Calls of a rank in a step."""
STEP_S = 60.0


def a_step(ranks: int, spans: int) -> PartOfRun:
    """A step in which every rank has as many spans inside its calls."""
    reports = []
    for number in range(ranks):
        who = Identity("actor", number, f"node-{number // 8}", "log")
        each, within = STEP_S / CALLS, STEP_S / spans
        calls = [RankCall(n * each, (n + 0.9) * each, "update", CallOrigin(n * each, "")) for n in range(CALLS)]
        inner = [InnerSpan(n * within, (n + 0.4) * within, "forward", 1, {"items": n}) for n in range(spans)]
        memory = {second: 2**30 + second for second in range(int(STEP_S))}
        reports.append((who, RankUsage(number, calls, memory, None, inner, 1)))
    return PartOfRun(1, 0.0, STEP_S, [("update", 0.0, STEP_S)], [], reports)


def recorded(spans: int) -> None:
    """What a rank does in a step for the timeline."""
    for number in range(spans):
        with span("forward", items=number):
            pass
    take_spans()


def main() -> None:
    """Measure and print a line for each number of ranks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--spans", type=int, default=200)
    options = parser.parse_args()
    print("ranks spans rank_ms thread_ms mib", flush=True)
    for ranks in options.ranks:
        part = a_step(ranks, options.spans)
        with tempfile.TemporaryDirectory() as folder:
            timeline, file = Timeline(Path(folder), 0, print), Path(folder) / TRACE_FILE
            rank = median(milliseconds(lambda: recorded(options.spans)) for _ in range(TRIES))
            began = time.thread_time()
            for _ in range(TRIES):
                timeline.write(part)
            thread = 1e3 * (time.thread_time() - began) / TRIES
            timeline.close()
            size = file.stat().st_size / TRIES / 2**20
        print(ranks, options.spans, f"{rank:.2f} {thread:.1f} {size:.3f}", flush=True)


if __name__ == "__main__":
    main()
