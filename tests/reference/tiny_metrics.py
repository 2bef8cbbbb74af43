"""The learning metrics of `configs/tiny.yaml` with a function as the reward, kept to tell when a change moves them.

A change that is meant to move them takes them afresh from a run of `tests/integration/test_ppo.py`:
`python -m tests.reference.tiny_metrics RUN`.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.metrics import is_measured

FILE = Path(__file__).with_name("tiny_metrics.json")


def learned(run_dir: Path) -> list[dict[str, Any]]:
    """Of each step what does not depend on the clock or on memory."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if not is_measured(key)} for line in lines]


def machine() -> str:
    """What the last bits of a floating-point number depend on: the processor, its vector instructions, the kernels."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    said = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vectors = sorted(flag for flag in said.get("flags", "").split() if flag.startswith(("avx", "amx", "fma")))
    cores = len(os.sched_getaffinity(0))
    return f"{said.get('model name', platform.machine())}, {cores} cores, torch {version('torch')}, {' '.join(vectors)}"


if __name__ == "__main__":
    kept = {"machine": machine(), "steps": learned(Path(sys.argv[1]))}
    FILE.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
