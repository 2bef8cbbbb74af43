"""Rows of the live display: the phases of a step and the roles that start. Their state flows in, rows flow out."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.display_text import printable
from orchestrator.report.phase_times import PhaseTime

_BAR = 24
"""Characters of a phase's bar."""


def phase_bars(phases: list[PhaseTime]) -> list[RenderableType]:
    """A line for each phase of the step: its bar, the time so far and the expected one."""
    lines: list[RenderableType] = []
    for phase in phases:
        known = math.isfinite(phase.expected)
        line = Table.grid(padding=(0, 1))
        line.add_column(width=12, no_wrap=True)
        line.add_column(width=_BAR, no_wrap=True)
        line.add_column(no_wrap=True)
        total = max(phase.expected if known else 0.0, phase.spent)
        bar = ProgressBar(total=total or 1.0, completed=phase.spent, width=_BAR, style="dim")
        words = f"{phase.spent:.1f}" + (f" of {phase.expected:.1f} s" if known else " s")
        line.add_row(Text(phase.name, style="bold" if phase.running else "dim"), bar, words)
        lines.append(line)
    return lines


def starting_table(doing: Mapping[str, str]) -> Table:
    """A line for each role: what it does while it starts."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for role, words in doing.items():
        table.add_row(Text(f"  {role}", style="bold"), Text(printable(words)))
    return table
