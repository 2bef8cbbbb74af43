"""Whatever write fails, and how many after it: the first error is the one that the user sees, in one block."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import typer

import orchestrator.stages.run
from cluster.errors import RankFailure
from cluster.runtime.orders import Orders
from orchestrator.commands.exit_codes import CONFIG_WRONG, RUN_FAILED, reported
from orchestrator.config.loading import load_config
from orchestrator.config.report import ReportConfig
from orchestrator.run.run_lock import LOCK
from orchestrator.stages.run import carry_out
from orchestrator.stages.stage import Stage
from orchestrator.timeline.trace_file import TRACE_FILE
from tests.unit.orchestrator.fakes import prompts_of, rollouts_of
from tests.unit.orchestrator.stages.test_run import TINY, Counting, orders

__all__ = ["orders"]  # a fixture

CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.utime")
WRITES = os.O_WRONLY | os.O_RDWR


class Disk:
    """A folder whose writes are counted; the one with number `at` fails, and those after it if the disk stays full."""

    def __init__(self) -> None:
        self.folder = ""
        sys.addaudithook(self._hear)

    @contextmanager
    def failing(self, folder: Path, at: int, lasting: bool) -> Iterator[None]:
        """Context in which writes in `folder` are counted and fail."""
        self.folder, self.at, self.lasting, self.count, self.met = str(folder), at, lasting, 0, False
        self.first: OSError | None = None
        self.before = True
        """Whether the first failing write came before the trouble of the run."""
        try:
            yield
        finally:
            self.folder = ""

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0]) if arguments else ""
        if not self.folder or not path.startswith(self.folder):
            return
        if event not in CHANGES and not (event == "open" and arguments[2] & WRITES):
            return
        if (event == "os.mkdir" and os.path.isdir(path)) or (event == "os.remove" and path.endswith(LOCK)):
            return  # there is nothing to make; a lock that stays is void once the process has ended
        self.count += 1
        if self.at and (self.count >= self.at if self.lasting else self.count == self.at):
            error = OSError(errno.ENOSPC, "No space left on device", path)
            if self.first is None and TRACE_FILE not in path:  # the run goes on without its timeline
                self.first, self.before = error, not self.met
            raise error


DISK = Disk()
CONFIG = load_config(TINY, ["checkpoint={every: 1, keep: 1}", "steps=3"])


class Troubled(Counting):
    """In its second step `trouble` comes; from then on no error of the disk is the first."""

    steps = 3
    keep: Any = None
    """The files of samples are written by a thread, whose writes have no fixed number."""

    @property
    def batch(self) -> Any:
        """Two samples."""
        return rollouts_of(prompts_of(2), 0)

    def meet(self) -> None:
        """The trouble."""
        DISK.met = True
        super().meet()


def run_on(folder: Path, at: int, lasting: bool, trouble: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of three steps with the trouble in the second, on a disk whose write number `at` fails (0: none)."""
    monkeypatch.setattr(orchestrator.stages.run, "ORDERS", Orders())
    config = CONFIG.model_copy(
        update={"run_dir": str(folder), "report": ReportConfig(tensorboard=False, html=not trouble)}
    )

    @contextmanager
    def start(report: Any) -> Iterator[Stage]:
        yield Troubled(folder, trouble, (2, "experience"))

    with DISK.failing(folder, at, lasting), reported(debug=False) as report:
        report.config = config
        carry_out(config, None, start, title="Counting", steps=3)


@pytest.mark.parametrize("lasting", [True, False], ids=["the disk stays full", "one write fails"])
@pytest.mark.parametrize("trouble", [None, RankFailure("counter rank 0 died")], ids=["a sound run", "a rank dies"])
def test_the_first_error_is_told_whichever_write_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: Any, lasting: bool
) -> None:
    at, writes = 0, 0
    while at <= writes:
        code = 0
        try:
            run_on(tmp_path / str(at), at, lasting, trouble, monkeypatch)
        except typer.Exit as ended:
            code = ended.exit_code
        told = capsys.readouterr().err
        if at == 0:
            writes = DISK.count
            assert writes > 20
        first = [word for word in (DISK.before and DISK.first and str(DISK.first), trouble and str(trouble)) if word]
        if first:
            assert code in (RUN_FAILED, CONFIG_WRONG) and first[0] in told.splitlines()[1], (at, told)
        assert (code == CONFIG_WRONG) == (at in (1, 2)), "before the lock is held nothing has started"
        assert told.count("error: ") <= 1 and "Traceback" not in told
        at += 1


def test_nothing_that_is_done_for_a_failed_run_hides_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even what is no error of the disk: a batch that cannot be written, a checkpoint, an explanation."""

    def fails(*arguments: Any) -> Any:
        raise TypeError("a fault of ours")

    monkeypatch.setattr(Troubled, "batch", "no batch")
    for name in ("before_rescue", "explain"):
        monkeypatch.setattr(Troubled, name, fails)
    with pytest.raises(typer.Exit):
        run_on(tmp_path, 0, False, RankFailure("counter rank 0 died"), monkeypatch)
    shown = capsys.readouterr()
    assert shown.err.splitlines()[:2] == ["error: the run failed", "  counter rank 0 died"]
    assert "the batch of the step that failed could not be written" in shown.out
    assert "why cannot be said in detail: a fault of ours" in shown.out
