"""Milliseconds that PPO runs have spent between their steps, from their timelines.

All that a step costs besides the algorithm is there: metrics, the ledger of samples, the lock of the folder, alerts;
files of samples and the timeline, which are handed over to threads. Pauses for an evaluation or a checkpoint are left
out.

    .venv/bin/python -m tests.benchmarks.between_steps RUN_DIR...
"""

from __future__ import annotations

import argparse
import gzip
import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from orchestrator.timeline.trace_file import TRACE_FILE

PHASES = ("generate", "score", "experience", "update", "push")


def pauses(events: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Milliseconds from the end of each step to the next one's beginning, and of these steps."""
    own = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for e in events if e["ph"] == "X" and e["pid"] == 0)
    steps: list[list[float]] = []
    others = [begin for begin, _, name in own if name.startswith(("evaluating", "saving", "keeping"))]
    for begin, end, name in own:
        if name == PHASES[0]:
            steps.append([begin, end])
        elif name in PHASES and steps:
            steps[-1][1] = end
    found = [
        ((later[0] - earlier[1]) / 1e3, (earlier[1] - earlier[0]) / 1e3)
        for earlier, later in pairwise(steps)
        if not any(earlier[1] <= begin <= later[0] for begin in others)
    ]
    return [pause for pause, _ in found], [step for _, step in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    for run in parser.parse_args().runs:
        with gzip.open(run / TRACE_FILE) as file:
            between, steps = pauses(json.load(file))
        pause, step = median(between), median(steps)
        print(f"{run}: {pause:.1f} ms between {len(between)} pairs of steps of {step:.0f} ms, {pause / step:.2%}")


if __name__ == "__main__":
    main()
