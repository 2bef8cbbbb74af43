"""The role group of a judge that is a language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ENGINES
from orchestrator.config.sampling import SamplingConfig
from orchestrator.groups.build import Models, builder
from roles.judge_engine import JudgeEngine


@contextmanager
def judge_engines(config: SamplingConfig, models: Models) -> Iterator[RoleGroup[JudgeEngine]]:
    """Context with the engines, up."""
    with builder(config, {ENGINES: None}) as build:
        engines = build.engines(models, JudgeEngine)
        build.ready()
        yield engines
