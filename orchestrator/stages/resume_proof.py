"""`tetrarch verify-resume`: a configuration flows in; it runs unbroken, and once more with processes killed on the way
and `--resume` after each; what differs between the two runs flows out.

A kill has a victim, a step, and a moment in the step. The moment is a share of the time that the unbroken run's steps
took, so the same kills hit about the same places in every proof, though not the same instructions.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from cluster.ranks.host_memory import tree
from orchestrator.display_text import duration
from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.report.run_files import METRICS_FILE, read_lines
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.run_difference import RunDifference, run_difference
from orchestrator.run.run_lock import check_free, wait_until_free
from orchestrator.stages.own_process import Tell, end_process, ends_with, last_lines

DRIVER, SERVICES = "driver", {"raylet": "raylet", "gcs": "gcs_server"}
"""Victims that are no rank: the command itself, and Ray's processes by the names of their programs."""
KILL = re.compile(r"(?P<victim>[a-z_]+(?:-\d+)?)@(?P<step>\d+)(?:\+(?P<share>0?\.\d+|0))?")
UNWATCHED = ("report.trackers=[]", "report.ray_metrics=false")
"""Overrides with which a run that is only compared is sent to none of the user's trackers and boards."""
GLANCE_S = 0.02
FREE_S = 60.0
"""Seconds in which a killed run must give its folder free."""
LAST_BYTES = 2**16
"""Bytes at the end of a run's metrics that hold the line of a step."""
KEPT_LINES = 12
"""Lines of a failed run's output that an error shows."""


@dataclass(frozen=True, slots=True)
class Kill:
    """`actor-1@3+0.50`: rank 1 of the actor gets SIGKILL in the middle of the step after step 3."""

    victim: str
    step: int
    share: float = 0.0
    """Share of a step's time that passes between the end of `step` and the kill."""

    def __str__(self) -> str:
        return f"{self.victim}@{self.step}+{self.share:.2f}"

    @classmethod
    def parse(cls, text: str) -> Kill:
        """ConfigError for a text that is no kill."""
        found = KILL.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"--kill={text}: write VICTIM@STEP or VICTIM@STEP+SHARE, such as actor-1@3+0.5; a victim is driver, "
                "raylet, gcs, or a role and a rank"
            )
        return cls(found["victim"], int(found["step"]), float(found["share"] or 0))


class Started:
    """Context with a command that runs as a process of its own; it is ended, however the context is left."""

    def __init__(self, words: Sequence[str], log: Path, limit_s: float) -> None:
        """`log`: the file that its output is added to; `limit_s`: seconds in which it must end."""
        self._words, self._log, self._limit_s = words, log, limit_s

    def __enter__(self) -> Self:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._words,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=ends_with(os.getpid()),
            )
        self._until = time.monotonic() + self._limit_s
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            end_process(self.process)

    def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until `is_so`. TetrarchError if the process ends before, or has no time left."""
        while not is_so():
            if not self.alive() and not is_so():
                raise TetrarchError(f"the run ended with exit code {self.process.returncode}:\n{self.end_of_log()}")

    def code(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        while self.alive():
            pass
        return int(self.process.returncode)

    def alive(self) -> bool:
        """Whether it still runs; looks at most every GLANCE_S seconds. TetrarchError if it has no time left."""
        self._check_time()
        time.sleep(GLANCE_S)
        return self.process.poll() is None

    def end_of_log(self) -> str:
        """The last lines that it has said."""
        return last_lines(self._log, KEPT_LINES)

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise TetrarchError(f"the run has not ended within {duration(self._limit_s)}; raise --limit-s")


def pids_in(log: Path) -> list[int]:
    """The processes of a rank, from its log; the last one is the newest."""
    return [int(pid) for pid in re.findall(r"^--- .*, pid (\d+),", log.read_text("utf-8", "replace"), re.M)]


def steps_in(run_dir: Path) -> int:
    """The last step that a run has reported; 0 before the first."""
    try:
        with (run_dir / METRICS_FILE).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_BYTES))
            whole = [line for line in file.read().split(b"\n")[:-1] if line.strip()]
    except FileNotFoundError:
        return 0
    return int(json.loads(whole[-1])["step"]) if whole else 0


@dataclass(slots=True)
class Proof:
    """One command, run twice: in `folder/whole` unbroken, in `folder/broken` with kills."""

    command: Sequence[str]
    """Words that start the training."""
    settings: Sequence[str]
    """Its overrides, without the one for its folder."""
    folder_key: str
    """The key that names the folder."""
    folder: Path
    run_name: str = ""
    """What the run's folder has behind the name of the folder that the key names, such as `-run`."""
    limit_s: float = 3600.0
    """Seconds in which each start must end."""
    tell: Tell = print
    struck: list[Kill] = field(default_factory=list)
    """The kills that were done."""

    def run_dir(self, name: str) -> Path:
        """`name`: `whole` or `broken`."""
        return self.folder / f"{name}{self.run_name}"

    def unbroken(self) -> float:
        """Run without kills; the mean seconds of a step after the first."""
        self._clear("whole")
        with self._started("whole") as started:
            if code := started.code():
                raise TetrarchError(f"the unbroken run ended with exit code {code}:\n{started.end_of_log()}")
        times = [line["time/step_s"] for line in read_lines(self.run_dir("whole") / METRICS_FILE)]
        return sum(times[1:]) / len(times[1:]) if len(times) > 1 else sum(times)

    def broken(self, kills: Sequence[Kill], step_s: float) -> None:
        """Run with kills, resuming after each, until the run has done all its steps."""
        self._clear("broken")
        pending, flags = sorted(kills, key=lambda kill: (kill.step, kill.share)), list[str]()
        run_dir = self.run_dir("broken")
        while True:
            hit: list[Kill] = []
            with self._started("broken", flags) as started:
                hit_at, since = -1, time.monotonic()  # a run that does not go on after a kill ends soon
                while pending and started.alive():
                    done = steps_in(run_dir)
                    if done >= pending[0].step and done > hit_at and self._strike(pending[0], started.process, step_s):
                        hit.append(pending.pop(0))
                        hit_at, since = done, time.monotonic()
                code, seconds = started.code(), time.monotonic() - since
                if code and not hit:
                    raise TetrarchError(f"the run ended by itself with exit code {code}:\n{started.end_of_log()}")
            self.struck += hit
            survived = hit if code == 0 else hit[:-1]
            for kill in survived:
                self.tell(f"{kill}: the run went on")
            if code == 0:
                break
            wait_until_free([run_dir], FREE_S, lambda error: None)
            flags = self._next_flags(hit[-1], code, seconds)
        for kill in pending:
            self.tell(f"{kill}: not done, the run had ended")

    def compare(self) -> RunDifference:
        """What differs between the two runs."""
        return run_difference(self.run_dir("whole"), self.run_dir("broken"))

    def _next_flags(self, kill: Kill, code: int, seconds: float) -> list[str]:
        """Options of the next start: that the run goes on, if it has a checkpoint. `seconds`: from kill to end."""
        newest = Checkpoints(self.run_dir("broken") / "checkpoints", keep=1).newest(content=True)
        ended = f"{f'signal {-code}' if code < 0 else f'exit code {code}'} after {seconds:.1f} s"
        if newest is None:
            self.tell(f"{kill}: ended with {ended} before the first checkpoint; started anew")
            self._clear("broken")
            return []
        self.tell(f"{kill}: ended with {ended}; resumed from step {newest.step}")
        return ["--resume"]

    def _strike(self, kill: Kill, process: subprocess.Popen[bytes], step_s: float) -> bool:
        """Kill the victim at its moment; False if it is not there (yet)."""
        victim = self._victim(kill.victim, process.pid)
        if victim is None:
            return False
        if kill.share:
            time.sleep(kill.share * step_s)
        with suppress(psutil.Error):
            victim.kill()
            return True
        return False

    def _victim(self, name: str, driver: int) -> psutil.Process | None:
        if name == DRIVER:
            return psutil.Process(driver)
        with suppress(psutil.Error):
            alive = {process.pid: process for process in tree(driver)}
            if name in SERVICES:
                return next((one for one in alive.values() if one.name() == SERVICES[name]), None)
            log = self.run_dir("broken") / "logs" / f"{name}.log"
            if log.is_file():
                pids = pids_in(log)
                return alive.get(pids[-1]) if pids else None
        return None

    def _started(self, name: str, flags: Sequence[str] = ()) -> Started:
        words = [*self.command, *flags, "--", *self.settings, *UNWATCHED, f"{self.folder_key}={self.folder / name}"]
        return Started(words, self._log(name), self.limit_s)

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _clear(self, name: str) -> None:
        """Remove what an earlier proof has left."""
        log = self._log(name)
        for path in {self.folder / name, self.run_dir(name)}:
            clear(path, log)
        log.unlink(missing_ok=True)


def clear(folder: Path, log: Path) -> None:
    """Remove a run that an earlier proof, which has left `log`, has made. ConfigError for any other folder, and while a
    run writes to it."""
    if not folder.exists():
        return
    if any(folder.iterdir()) and not log.exists():
        raise ConfigError(f"{folder} was not made by an earlier proof or replay; move it, or remove it")
    check_free(folder)
    shutil.rmtree(folder)


def random_kills(count: int, steps: int, victims: Sequence[str], seed: int) -> list[Kill]:
    """`count` kills at different steps, drawn from `seed`: the victims, and the moments in their steps."""
    choose = random.Random(seed)
    at = sorted(choose.sample(range(1, steps), count))
    return [Kill(choose.choice(victims), step, round(choose.random(), 2)) for step in at]
