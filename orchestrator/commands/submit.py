"""`tetrarch submit`: the run as a job on a Ray cluster, started from here.

A configuration that has been checked, and the words of the command, flow in; the job's log flows to stdout, all else to
stderr, and the job's exit code flows out.
"""

from __future__ import annotations

import re
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import typer

from cluster.capacity.cards import asking_for_cards
from cluster.capacity.shortage import check_capacity
from cluster.errors import ClusterError
from cluster.placement.plan import plan
from cluster.runtime.job_follower import FAILED, STOPPED, Follower, JobState
from cluster.runtime.jobs import STOP_S, RayJobs
from orchestrator.checks.run_folders import check_lasting
from orchestrator.commands.exit_codes import INTERRUPTED
from orchestrator.config.base import BaseConfig
from orchestrator.config.role_needs import RoleNames, role_needs
from orchestrator.config.secrets import check_overrides
from orchestrator.errors import ConfigError

AFTER_GRACE_S = 30.0
"""Seconds that a job has to end its ranks after `deadlines.grace_s`."""


@dataclass(frozen=True, slots=True)
class Submission:
    """The command of the job, and its working directory."""

    command: str
    """Such as `train`."""
    config_file: Path
    """Path relative to `working_dir`."""
    overrides: Sequence[str]
    flags: Sequence[str]
    working_dir: Path

    @property
    def words(self) -> list[str]:
        """The command of the job, which works without an installed `tetrarch`: the code is in the working directory."""
        return ["python", "-m", "orchestrator", self.command, str(self.config_file), *self.overrides, *self.flags]


def in_working_dir(config_file: Path, working_dir: Path) -> Path:
    """The configuration's path in the job. ConfigError if the file is not in the working directory."""
    if not working_dir.is_dir():
        raise ConfigError(f"--working-dir={working_dir} is not a folder; name the one that holds the code")
    whole, root = config_file.resolve(), working_dir.resolve()
    if not whole.is_relative_to(root):
        raise ConfigError(
            f"{config_file} is not in the working directory {root}, which is what the job sees; move it there, or "
            "say --working-dir"
        )
    return whole.relative_to(root)


def check_travels(config: BaseConfig, overrides: Sequence[str]) -> None:
    """Raise ConfigError for keys whose value a job would lose, or show to everybody."""
    key = config.folder_key
    folder = Path(attrgetter(key)(config))
    if not folder.is_absolute():
        raise ConfigError(
            f"{key}={folder} is relative: it would lie in the job's own copy of the working directory, and be lost "
            f"with it; use an absolute path on storage that all nodes share, such as {key}=/shared/{folder}"
        )
    check_lasting(folder, key)
    check_overrides(overrides, "Ray's dashboard shows the command of a job")


def check_room(config: BaseConfig, roles: Sequence[RoleNames], jobs: RayJobs) -> None:
    """PlacementError, naming the shortage, if the cluster's nodes can never hold `roles`, one mapping at a time, or
    have other cards."""
    nodes = jobs.nodes()
    for together in roles:
        check_capacity(asking_for_cards(plan(config.placement, role_needs(config, together)), nodes), nodes)


def run_job(jobs: RayJobs, config: BaseConfig, submission: Submission) -> int:
    """Upload, start and follow the job; returns its exit code."""
    if not (submission.working_dir / "orchestrator" / "__main__.py").is_file():
        _tell(f"{submission.working_dir.resolve()} has no orchestrator/: the nodes must have tetrarch installed")
    _tell(f"uploading {submission.working_dir.resolve()} to {jobs.address} (what .gitignore names stays here)")
    stop_s = max(STOP_S, config.deadlines.grace_s + AFTER_GRACE_S)
    job = jobs.submit(_name(config), submission.words, submission.working_dir, stop_s)
    _tell(f"job {job} is submitted; its log follows. Ctrl-C asks whether to stop it", color=typer.colors.GREEN)
    return follow(jobs, job, _ask if sys.stdin.isatty() else None, stop_s)


def follow(jobs: RayJobs, job: str, ask: Callable[[str], bool] | None, stop_s: float = STOP_S) -> int:
    """The job's exit code; 130 after Ctrl-C. `ask`: asks the user; None where nobody can answer. `stop_s`: as the job
    was submitted with."""
    follower = Follower(jobs, job, _show, _tell)
    try:
        return _ended(job, follower.until_end())
    except ClusterError as error:
        raise ClusterError(f"{error}\n{_left(jobs, job)}") from error
    except KeyboardInterrupt:
        print(file=sys.stderr)
    if ask is None or not ask(f"stop the job {job}?"):
        _tell(_left(jobs, job))
        return INTERRUPTED
    _tell(f"stopping; it has {stop_s:.0f} s to end its ranks (Ctrl-C: do not wait)")
    try:
        jobs.stop(job)
        _ended(job, follower.until_end(2 * stop_s))
    except ClusterError as error:
        raise ClusterError(f"{error}\n{_left(jobs, job)}") from error
    except KeyboardInterrupt:
        _tell(f"Ray goes on stopping it; look with: ray job status --address {jobs.address} {job}")
    return INTERRUPTED


def _ended(job: str, state: JobState) -> int:
    said = {STOPPED: "was stopped", FAILED: f"failed with exit code {state.exit_code}"}
    why = f": {state.message}" if state.status == FAILED and state.driver_code is None else ""
    color = typer.colors.GREEN if state.exit_code == 0 else typer.colors.RED
    _tell(f"job {job} {said.get(state.status, 'succeeded')}{why}", color=color)
    return state.exit_code


def _left(jobs: RayJobs, job: str) -> str:
    return (
        f"the job {job} goes on without us\n"
        f"  follow it:  ray job logs --follow --address {jobs.address} {job}\n"
        f"  stop it:    ray job stop --address {jobs.address} {job}"
    )


def _ask(question: str) -> bool:
    try:
        return typer.confirm(question, default=False, err=True)
    except typer.Abort:  # Ctrl-C again, or the end of the input
        return False


def _name(config: BaseConfig) -> str:
    """A unique name of the job that begins with the run's."""
    return f"{re.sub(r'[^A-Za-z0-9_-]', '-', Path(config.run_dir).name) or 'run'}-{secrets.token_hex(4)}"


def _show(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _tell(text: str, color: str | None = None) -> None:
    typer.secho(text, fg=color, err=True)
