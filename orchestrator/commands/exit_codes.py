"""The end of a command: an exception becomes one block on stderr and an exit code.

The traceback of a failed run goes to `<run_dir>/logs/driver.log`, and is shown with `--debug`.
"""

from __future__ import annotations

import re
import select
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, Protocol, TypeVar

import typer

from cluster.errors import ClusterError, ClusterUnreachable, PlacementError, Terminated
from cluster.runtime.last_resort import at_most
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import unread_overrides
from orchestrator.config.rules.ppo_rules import penalty_warnings
from orchestrator.config.secrets import check_overrides, unencrypted_tokens
from orchestrator.errors import ConfigError, LabellingStopped, StopTraining, TetrarchError
from orchestrator.run.checkpoint import progress_of
from orchestrator.run.resume_rules import RESUME_RULES
from roles.errors import RoleError

RUN_FAILED = 1
CONFIG_WRONG = 2
RULE_STOPPED = 4
INTERRUPTED = 130
READER_GONE = 141
"""What a shell says of a program whose reader has gone, such as `head`."""
TERMINATED = 143

C = TypeVar("C", bound=BaseConfig)

CLOSING_S = 60.0
"""Seconds in which the disk must answer when the error has been told."""
DRIVER_LOG = "logs/driver.log"
"""File in `run_dir` for the traceback of a failed run."""


class DataRead(Protocol):
    """What a command has read, such as `Questions`."""

    @property
    def summary(self) -> str:
        """How much there is, and what was left out."""

    @property
    def example(self) -> str:
        """One row as the model reads it; empty if there is none to show."""


class Outcome:
    """The messages of a command on stderr; it knows the run's folder as soon as the configuration has loaded."""

    def __init__(self) -> None:
        self.config: BaseConfig | None = None

    def loaded(self, config: C, overrides: Sequence[str] | None) -> C:
        """Remember the run's folder for errors, refuse secrets on the command line, name overrides without an effect,
        secrets that would be sent unencrypted and a penalty that would be magnified, and print what comes next."""
        check_overrides(overrides or ())
        self.config = config
        self.unused(config, overrides)
        for line in (*unencrypted_tokens(config), *penalty_warnings(config)):
            typer.secho(f"warning: {line}", fg=typer.colors.YELLOW, err=True)
        typer.echo("checking the configuration and what it names (the first time, models are converted)", err=True)
        return config

    def unused(self, config: BaseConfig, overrides: Sequence[str] | None) -> None:
        """Name the overrides that the command does not read."""
        for line in unread_overrides(config, overrides or ()):
            typer.secho(line, fg=typer.colors.YELLOW, err=True)

    def read(self, *data: DataRead | None) -> None:
        """Say what has been read, and show a row of the first."""
        found = [source for source in data if source is not None]
        for source in found:
            typer.echo(source.summary, err=True)
        if found and found[0].example:
            typer.echo(found[0].example, err=True)

    def progress(self) -> None:
        """Say from which checkpoint the run goes on, if it is of a kind that has checkpoints."""
        if self.config is not None and type(self.config) in RESUME_RULES:
            folders = [Path(run.run_dir) for run in self.config.runs]
            folder = ([there for there in folders if there.is_dir()] or folders)[-1]
            try:
                told = progress_of(folder)
            except OSError as failed:  # it must not hide why the run has ended
                told = f"{folder} cannot be read: {failed.strerror}"
            typer.echo(f"  {told}", err=True)

    def fail(self, headline: str, error: BaseException, code: int, debug: bool) -> NoReturn:
        if debug:
            traceback.print_exception(error)
        message = str(error) or type(error).__name__
        if not isinstance(error, (TetrarchError, RoleError, ClusterError)):
            message = f"{type(error).__name__}: {message}"
        typer.secho(f"error: {headline}", fg=typer.colors.RED, bold=True, err=True)
        made = _how_to_make(message) if code == CONFIG_WRONG else ()
        typer.echo("\n".join(f"  {line}" for line in (*message.splitlines(), *made)), err=True)
        if code in (RUN_FAILED, RULE_STOPPED) and self.config is not None:
            with at_most(CLOSING_S, f"writing {DRIVER_LOG}"):
                self.progress()
                if code == RUN_FAILED:
                    typer.echo(f"  ({_log_traceback(Path(self.config.run_dir), error)})", err=True)
        sys.stderr.flush()
        raise typer.Exit(code)


@contextmanager
def reported(debug: bool) -> Iterator[Outcome]:
    """Context that turns an exception into one block on stderr and an exit code."""
    report = Outcome()
    try:
        yield report
    except ConfigError as error:
        report.fail("the configuration is wrong", error, CONFIG_WRONG, debug)
    except PlacementError as error:
        report.fail("the placement does not fit", error, CONFIG_WRONG, debug)
    except ClusterUnreachable as error:
        report.fail("no access to the cluster", error, CONFIG_WRONG, debug)
    except KeyboardInterrupt as error:
        ended = isinstance(error, Terminated)
        typer.secho("ended by SIGTERM" if ended else "stopped", fg=typer.colors.YELLOW, bold=True, err=True)
        report.progress()
        raise typer.Exit(TERMINATED if ended else INTERRUPTED) from None
    except StopTraining as error:
        report.fail("a rule of the configuration has ended the run", error, RULE_STOPPED, debug)
    except LabellingStopped as error:
        report.fail("labelling has stopped", error, RUN_FAILED, debug)
    except BrokenPipeError as error:
        if report.config is not None or not _reader_gone():
            report.fail("the run failed", error, RUN_FAILED, debug)
        raise typer.Exit(READER_GONE) from None  # it only printed, and nobody reads on
    except Exception as error:
        report.fail("the run failed", error, RUN_FAILED, debug)


def _how_to_make(message: str) -> list[str]:
    """For each folder of inputs that is missing and named in an error: the command that makes it, from the head of a
    shipped configuration that reads it."""
    found: dict[str, str] = {}
    for folder in dict.fromkeys(re.findall(r"\bruns/inputs/[\w-]+", message)):
        for file in () if Path(folder).exists() else sorted(Path("configs").glob("*.yaml")):
            text = ""
            with suppress(OSError):
                text = file.read_text(encoding="utf-8", errors="replace")
            command = re.search(r"^# +(\S*python configs/\S+)$", text, re.MULTILINE)
            if folder in text and command:
                found.setdefault(command[1], folder)
                break
    return [f"{folder} is made by {command}" for command, folder in found.items()]


def _reader_gone() -> bool:
    """Whether stdout is a pipe that nobody reads any more."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), select.POLLOUT)
    except (OSError, ValueError):  # it is no file, or closed
        return False
    return any(found & select.POLLERR for _, found in poll.poll(0))


def _log_traceback(run_dir: Path, error: BaseException) -> str:
    """Where the traceback is; or why no log could be written, so that this does not hide the error."""
    log = run_dir / DRIVER_LOG
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8", errors="backslashreplace") as file:
            traceback.print_exception(error, file=file)
    except OSError as failed:
        return f"no traceback, since {log.parent} cannot be written to: {failed.strerror}; --debug shows it"
    return f"traceback: {log}"
