"""Does anything grow, and is anything lost, over thousands of steps? `make soak`

`tetrarch verify-resume` of `configs/tiny.yaml`: 2,000 steps unbroken, and 2,000 with a kill in every hundred, each at a
moment and of a victim that `--seed` chooses; both must end with the same bits. Meanwhile every process of the unbroken
run is looked at: memory (proportional set size), file handles and threads, in windows of steps. A process is flat if no
window after the first 200 steps has a median of any of them that is more than 5 % above that of the first window.

    .venv/bin/python -m tests.benchmarks.soak [--steps 2000] [--every 100] [--seed 0]

Exit code 0 if all are flat and the runs are the same, 1 otherwise.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.ranks.host_memory import held_bytes, tree
from orchestrator.commands.proof_commands import victims_of
from orchestrator.config.loading import load_config
from orchestrator.stages.resume_proof import SERVICES, Kill, pids_in, steps_in

CONFIG = "configs/tiny.yaml"
WARM_UP, WINDOWS = 200, 9
"""Steps before the first window, and windows after it."""
GROWTH = 1.05
PAUSE_S = 5.0
NAME_LENGTH = 30
CHECKPOINT_EVERY = 20


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process holds after a step."""

    step: int
    bytes: int
    handles: int
    threads: int


HELD = ("bytes", "handles", "threads")


@dataclass(slots=True)
class Watched:
    """The processes of a run, by the names of their ranks or programs."""

    run_dir: Path
    samples: dict[str, list[Sample]] = field(default_factory=lambda: defaultdict(list))

    def look(self, pid: int) -> None:
        """Take one sample of every descendant of the process `pid`, unless the run does not stand (yet)."""
        if not (step := steps_in(self.run_dir)):
            return
        ranks = self._ranks()
        for process in tree(pid)[1:]:
            with suppress(psutil.Error):
                name = ranks.get(process.pid) or f"{program(process)} ({process.pid})"
                held = Sample(step, held_bytes(process), process.num_fds(), process.num_threads())
                self.samples[name].append(held)

    def _ranks(self) -> dict[int, str]:
        return {pid: log.stem for log in (self.run_dir / "logs").glob("*.log") for pid in pids_in(log)}


def program(process: psutil.Process) -> str:
    """What it runs, in a few words."""
    name = process.name()
    return " ".join(process.cmdline()[1:])[:NAME_LENGTH] if name.startswith("python") else name


@dataclass(frozen=True, slots=True)
class Flatness:
    """A process at the start and at the end of what was watched: medians of its first window, and of its largest."""

    name: str
    first: Sample
    largest: Sample

    @property
    def flat(self) -> bool:
        return all(getattr(self.largest, what) <= GROWTH * getattr(self.first, what) for what in HELD)


def flatness(name: str, samples: Sequence[Sample], warm_up: int, windows: int) -> Flatness | None:
    """None for a process that was not there in all windows."""
    counted = [sample for sample in samples if sample.step > warm_up]
    if not counted:
        return None
    width = (max(sample.step for sample in counted) - warm_up) / windows
    within = [[one for one in counted if at * width < one.step - warm_up <= (at + 1) * width] for at in range(windows)]
    if not all(within):
        return None
    medians = [[int(statistics.median_high(getattr(one, what) for one in part)) for what in HELD] for part in within]
    largest = map(max, zip(*medians, strict=True))
    return Flatness(name, Sample(within[0][-1].step, *medians[0]), Sample(within[-1][-1].step, *largest))


def table(found: Sequence[Flatness]) -> str:
    """Markdown."""
    lines = ["| Process | MiB at first | most | Handles | most | Threads | most | Flat |", "|" + " --- |" * 8]
    for one in sorted(found, key=lambda one: one.name):
        mib = (f"{sample.bytes / 2**20:.1f}" for sample in (one.first, one.largest))
        counts = f"{one.first.handles} | {one.largest.handles} | {one.first.threads} | {one.largest.threads}"
        lines.append(f"| {one.name} | {' | '.join(mib)} | {counts} | {'yes' if one.flat else '**no**'} |")
    return "\n".join(lines)


def kills(steps: int, every: int, seed: int) -> list[Kill]:
    """One within each `every` steps."""
    choose = random.Random(seed)
    victims = [*victims_of("train", load_config(CONFIG)), *SERVICES]
    starts = range(0, steps - 1, every)
    at = (choose.randint(start + 1, min(start + every, steps) - 1) for start in starts)
    return [Kill(choose.choice(victims), step, round(choose.random(), 2)) for step in at]


def soak(steps: int, every: int, seed: int, warm_up: int, windows: int, folder: Path) -> bool:
    """Run both; whether all is flat and the same. Prints the table."""
    words = [f"run_dir={folder}", "report.html=false", "--steps", str(steps), "--limit-s", str(60 + 30 * steps)]
    words += ["--checkpoint-every", str(min(CHECKPOINT_EVERY, every))]
    words += [word for kill in kills(steps, every, seed) for word in ("--kill", str(kill))]
    whole = Watched(Path(f"{folder}-verify/whole"))
    with subprocess.Popen([sys.executable, "-m", "orchestrator", "verify-resume", CONFIG, *words]) as process:
        while process.poll() is None:
            if not whole.run_dir.with_name("broken").exists():
                whole.look(process.pid)
            time.sleep(PAUSE_S)
    found = [flatness(name, samples, warm_up, windows) for name, samples in whole.samples.items()]
    told = [one for one in found if one is not None]
    print(table(told))
    return process.returncode == 0 and bool(told) and all(one.flat for one in told)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=2000)
    options.add_argument("--every", type=int, default=100, help="steps in which one process is killed")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--warm-up", type=int, default=WARM_UP, help="steps before the first window")
    options.add_argument("--windows", type=int, default=WINDOWS)
    options.add_argument("--folder", type=Path, default=Path("runs/soak"))
    given = options.parse_args()
    return 0 if soak(given.steps, given.every, given.seed, given.warm_up, given.windows, given.folder) else 1


if __name__ == "__main__":
    sys.exit(main())
