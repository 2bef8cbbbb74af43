"""Files that are replaced whole, also by processes on several hosts that share a file system."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from orchestrator.data.comparisons import keep
from orchestrator.report.run_files import replace_text
from orchestrator.timeline.trace_file import TraceFile
from roles.batch import Preferences
from roles.durable import replace_durably

ROWS = [torch.ones(2, dtype=torch.int64) for _ in range(3)]
COMPARISONS = Preferences(ROWS[0][:, None], *ROWS[1:], torch.tensor([0.0, 1.0]), torch.ones(2))
WRITERS: list[Callable[[Path], object]] = [
    lambda path: replace_durably(path, b"whole"),
    lambda path: replace_text(path, "whole"),
    lambda path: TraceFile(path).close(),
    lambda path: keep(COMPARISONS, path),
]


@pytest.mark.parametrize("write", WRITERS, ids=["durably", "text", "trace", "comparisons"])
def test_processes_with_the_same_number_on_two_hosts_do_not_write_to_the_same_partial_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    renamed: list[tuple[Path, Path]] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: renamed.append((self, to)) or replace(self, to))
    for _ in range(2):
        write(tmp_path / "file")
    (one, first), (other, second) = renamed
    assert one != other and first == second == tmp_path / "file"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("write", WRITERS, ids=["durably", "text", "trace", "comparisons"])
def test_a_partial_file_that_cannot_be_finished_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    """Its name is never used again."""

    def full(self: Path, to: Path) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "file").write_text("before")
    monkeypatch.setattr(Path, "replace", full)
    with suppress(OSError):
        write(tmp_path / "file")
    assert {path.name: path.read_text(errors="replace") for path in tmp_path.iterdir()} == {"file": "before"}
