"""The section `profile`: the ranks that it names are profiled in its steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.ranks.profiler import check_profiled, profiled
from orchestrator.config.base import BaseConfig

PROFILES = "profile"
"""Folder in `run_dir`."""


@contextmanager
def perhaps_profiled(config: BaseConfig, step: int) -> Iterator[None]:
    """Context of a step. ClusterError in any step if a rank does not run."""
    if (profile := config.profile) is None:
        yield
        return
    check_profiled(profile.ranks)
    if step not in profile.steps:
        yield
        return
    with profiled(profile.ranks, Path(config.run_dir).absolute() / PROFILES, step, config.deadlines.save_s):
        yield
