"""Checks the benchmarks of an evaluation before anything starts: a section flows in; nothing flows out, or a
ConfigError that names key, value and fix."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from orchestrator.config.evaluation import BenchmarksConfig
from orchestrator.errors import ConfigError


def check_benchmarks(config: BenchmarksConfig | None) -> None:
    """lm-eval is there, and so is the folder of one's own tasks."""
    if config is None:
        return
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "evaluation.benchmarks needs the package lm-eval, which is not installed; install the extra `lm-eval` "
            "(`uv pip install '.[lm-eval]'`), or remove evaluation.benchmarks"
        )
    if config.task_folder is not None and not Path(config.task_folder).is_dir():
        raise ConfigError(f"evaluation.benchmarks.task_folder={config.task_folder} is not a folder; correct the path")
