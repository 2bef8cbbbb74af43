"""The progress of a run: a live display on a terminal, plain lines elsewhere.

Text from models is printed with its control characters replaced, so that a response cannot control the terminal.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cluster.counts import counted
from orchestrator.display_text import duration, printable, sparkline
from orchestrator.report.display_rows import phase_bars, starting_table
from orchestrator.report.phase_times import PhaseTimes
from orchestrator.report.terminal_lines import shown, step_line

_HISTORY = 20
"""Number of latest steps in the live display's trends and in the estimate of the remaining time."""
_WARNINGS = 3
"""Number of newest warnings that stay in the live display."""
_NOTEBOOK = "JPY_PARENT_PID"
"""Variable of what a notebook's cell starts: it writes to a terminal, but the page only ever adds lines."""


class Progress(Protocol):
    """Shows the user the progress of a run."""

    def status(self, text: str) -> None:
        """Show what the run does from now on."""

    @property
    def width(self) -> int:
        """Characters that fit on one line."""

    def phase(self, text: str, name: str = "") -> None:
        """Show the current part of a step, whose time is the metric `time/NAME_s`; plain output has no line for it."""

    def starting(self, doing: Mapping[str, str]) -> None:
        """Show what each role is doing while it starts (role → words); an empty mapping: no role starts any more."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step."""

    def expect(self, steps: int) -> None:
        """Set the number of steps of the run, if it was not known at the beginning."""

    def lines(self, text: str) -> None:
        """Print text that stays on the screen."""

    def warn(self, text: str) -> None:
        """Print a warning that stays on the screen."""

    def close(self) -> None:
        """End the display: the run has ended."""


def make_progress(name: str, steps: int, first_step: int) -> Progress:
    """A live display if standard output is a terminal that can move its cursor, plain lines elsewhere."""
    console = Console()
    if sys.stdout.isatty() and not console.is_dumb_terminal and _NOTEBOOK not in os.environ:
        return LiveProgress(name, steps, first_step, console)
    return PlainProgress(name, steps, first_step)


class Pace:
    """Estimates the remaining time from the latest steps, including evaluations and checkpoints between them."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._ends: deque[tuple[int, float]] = deque(maxlen=_HISTORY)

    def left(self, step: int, metrics: Mapping[str, float]) -> float:
        """Seconds from the end of `step` to the end of the run; NaN if nothing is known yet."""
        now = time.monotonic()
        if not self._ends and "time/step_s" in metrics and math.isfinite(metrics["time/step_s"]):
            self._ends.append((step - 1, now - metrics["time/step_s"]))
        self._ends.append((step, now))
        (first, began), (last, ended) = self._ends[0], self._ends[-1]
        return (ended - began) / (last - first) * (self._steps - step) if last > first else math.nan


class PlainProgress:
    """One line at a time, flushed at once; a heartbeat if nothing was printed for a while."""

    def __init__(
        self, name: str, steps: int, first_step: int, *, stream: TextIO | None = None, heartbeat_s: float = 30.0
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._steps = steps
        self._pace = Pace(steps)
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self._doing, self._doing_since, self._printed = "", self._began, self._began
        self._starting: Mapping[str, str] = {}
        self._heartbeat_s = heartbeat_s
        self._closed = threading.Event()
        resumed = f", from step {first_step + 1}" if first_step else ""
        self.lines(f"{name}: {counted(steps, 'step')}{resumed}" if steps else name)
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def status(self, text: str) -> None:
        """Print the text with the time since the start."""
        self.phase(text)
        self.lines(text)

    @property
    def width(self) -> int:
        """A line of a file is not wrapped, but has to be read."""
        return 160

    def phase(self, text: str, name: str = "") -> None:
        """Remember the text for the heartbeat; print nothing."""
        with self._lock:
            self._doing, self._doing_since, self._starting = text, time.monotonic(), {}

    def starting(self, doing: Mapping[str, str]) -> None:
        """Remember what the roles do for the heartbeat; print nothing."""
        with self._lock:
            self._starting = doing

    def expect(self, steps: int) -> None:
        """Use the number of steps in the lines of later steps."""
        self._steps, self._pace = steps, Pace(steps)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the line of a step."""
        self.lines(step_line(step, self._steps, metrics, self._pace.left(step, metrics)))

    def lines(self, text: str) -> None:
        """Print each line with the time since the start."""
        with self._lock:
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a line that begins with `warning`."""
        self.lines(f"warning: {text}")

    def close(self) -> None:
        """End the heartbeat."""
        self._closed.set()

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        stamp = f"[{duration(self._printed - self._began):>7}] "
        body = "\n".join(stamp + line for line in text.split("\n")) + "\n"
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(body.encode(encoding, "replace").decode(encoding))
        self._stream.flush()

    def _beat(self) -> None:
        while not self._closed.wait(self._heartbeat_s / 10):
            with self._lock:
                now = time.monotonic()
                if self._doing and now - self._printed >= self._heartbeat_s and not self._closed.is_set():
                    roles = "; ".join(f"{role} {words}" for role, words in self._starting.items())
                    still = f"… still {self._doing}, {now - self._doing_since:.0f} s{roles and ': '}{roles}"
                    self._print(printable(still))  # the roles' words are from logs


class LiveProgress:
    """A display that redraws itself: a progress bar, the current work with its duration and the phases of the step,
    the newest warnings, the latest metrics with their trends.

    What does not fit into the terminal is left out from the bottom; the phases need room for all others.
    """

    def __init__(self, name: str, steps: int, first_step: int, console: Console) -> None:
        self._name, self._steps, self._step = name, steps, first_step
        self._pace = Pace(steps)
        self._left = math.nan
        self._began = time.monotonic()
        self._doing, self._doing_since = "starting", self._began
        self._history: deque[Mapping[str, float]] = deque(maxlen=_HISTORY)
        self._phases = PhaseTimes(_HISTORY)
        self._starting: Mapping[str, str] = {}
        self._warnings: deque[str] = deque(maxlen=_WARNINGS)
        self._console = console
        self._spinner = Spinner("dots" if console.encoding.startswith("utf") else "line")
        self._live = Live(get_renderable=self._render, console=console, refresh_per_second=5)
        self._live.start(refresh=True)

    def status(self, text: str) -> None:
        """Show the text beside the spinner."""
        self.phase(text)

    @property
    def width(self) -> int:
        """Of the terminal."""
        return self._console.width

    def phase(self, text: str, name: str = "") -> None:
        """Show the text beside the spinner, and the bar of the phase."""
        self._doing, self._doing_since, self._starting = text, time.monotonic(), {}
        self._phases.begin(name)

    def starting(self, doing: Mapping[str, str]) -> None:
        """Show a line for each role."""
        self._starting = dict(doing)

    def expect(self, steps: int) -> None:
        """Set the length of the bar."""
        self._steps, self._pace = steps, Pace(steps)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Update the bar and the table."""
        self._history.append(dict(metrics))
        self._phases.step(metrics)
        self._step, self._left = step, self._pace.left(step, metrics)

    def lines(self, text: str) -> None:
        """Print above the display."""
        self._console.print(Text(text))

    def warn(self, text: str) -> None:
        """Print above the display, and keep the beginning of the newest warnings in it."""
        self._warnings.append(text)
        self._console.print(Text(f"warning: {text}", style="yellow"))

    def close(self) -> None:
        """Stop redrawing; the last state stays on the screen."""
        self._doing = ""
        self._live.stop()

    def _render(self) -> RenderableType:
        try:
            return self._content()
        except Exception as error:  # it would end the thread that redraws, or the run that prints
            return Text(printable(f"the display failed: {type(error).__name__}: {error}"), style="red")

    def _content(self) -> RenderableType:
        now = time.monotonic()
        head = Table.grid(padding=(0, 1), expand=True)
        for options in ({"no_wrap": True, "max_width": 24}, {"ratio": 1}, {"no_wrap": True}, {"no_wrap": True}):
            head.add_column(**options)
        left = "" if not self._left > 0 or not self._doing else f"ETA {duration(self._left)}"
        bar: RenderableType = ProgressBar(total=self._steps, completed=self._step, style="dim") if self._steps else ""
        spent = (f"{self._step}/{self._steps}  " if self._steps else "") + duration(now - self._began)
        head.add_row(
            Text(printable(self._name), style="bold", overflow="ellipsis"), bar, spent, Text(left, style="dim")
        )
        parts: list[RenderableType] = [head]
        if self._doing:
            spent = duration(now - self._doing_since)
            doing = Text(printable(self._doing))
            doing.truncate(max(self._console.width - len(spent) - 5, 8), overflow="ellipsis")
            self._spinner.update(text=doing.append(f"  {spent}", style="dim"))
            parts.append(self._spinner)
        for warning in self._warnings:
            line = Text(printable(f"! {warning}"), style="yellow")
            line.truncate(self._console.width - 1, overflow="ellipsis")
            parts.append(line)
        table = self._table() if self._history else None
        phases = phase_bars(self._phases.now()) if self._doing else []
        rows = len(parts) + (table.row_count + 1 if table else 0)
        if rows + len(phases) < self._console.height:
            parts += phases
        parts += [starting_table(self._starting)] if self._starting else []
        return Group(*parts, *([table] if table else []))

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
        wide = self._console.width >= 72
        table.add_column("metric", no_wrap=True)
        table.add_column("latest", justify="right", no_wrap=True)
        table.add_column("", no_wrap=True)
        if wide:
            table.add_column(f"last {len(self._history)}", no_wrap=True, style="cyan")
        for row in shown(self._history[-1]):
            trend = [sparkline([m[row.key] for m in self._history if row.key in m])] if wide else []
            table.add_row(row.name, row.value, row.remark, *trend)
        return table
