"""The table of what was reached against what is exact, shown at the end of `make anchors`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Row = Callable[[str, str, float, float, float], None]
_ROWS: list[str] = []


@pytest.fixture
def reached() -> Row:
    """Write a line of the table, and fail where it is further off than the tolerance."""

    def row(task: str, quantity: str, got: float, exact: float, tolerance: float) -> None:
        _ROWS.append(f"| {task} | {quantity} | {got:.4f} | {exact:.4f} | ± {tolerance:.2g} |")
        assert abs(got - exact) <= tolerance, _ROWS[-1]

    return row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, as the README has it."""
    if _ROWS:
        terminalreporter.section("reached against exact")
        for line in ["| Task | Quantity | Reached | Exact | Tolerance |", "| --- | --- | --- | --- | --- |", *_ROWS]:
            terminalreporter.write_line(line)
