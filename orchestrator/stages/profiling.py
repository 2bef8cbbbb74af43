"""The section `profile`: the ranks that it names are profiled in its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.ranks.profiler import profiled
from orchestrator.config.base import BaseConfig

PROFILES = "profile"
"""Folder in `run_dir`."""


@contextmanager
def perhaps_profiled(config: BaseConfig, step: int, tell: Callable[[str], None]) -> Iterator[None]:
    """Context of a step. What cannot be profiled is told."""
    profile = config.profile
    if profile is None or step not in profile.steps:
        yield
        return
    with profiled(profile.ranks, Path(config.run_dir).absolute() / PROFILES, step, tell):
        yield
