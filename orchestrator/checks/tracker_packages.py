"""The packages of the trackers that a configuration names are there. The configuration flows in, or an error out."""

from __future__ import annotations

from importlib.util import find_spec

from orchestrator.config.report import ReportConfig
from orchestrator.errors import ConfigError


def check_trackers(report: ReportConfig) -> None:
    """ConfigError with the line for pip, for a tracker whose package is missing."""
    for number, tracker in enumerate(report.trackers):
        if find_spec(tracker.type) is None:
            raise ConfigError(
                f"report.trackers[{number}].type={tracker.type}: the package {tracker.type} is not installed here; "
                f"run `pip install {tracker.type}` in this environment, or remove the entry"
            )
