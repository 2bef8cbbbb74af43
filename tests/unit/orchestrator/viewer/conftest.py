from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.viewer import sample_search
from tests.unit.orchestrator.viewer.written_runs import (
    a_run,
)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search ends early only where a test means it to, however busy the machine is."""
    monkeypatch.setattr(sample_search, "LOOKING_S", 600.0)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps; no test changes it."""
    return a_run(tmp_path_factory.mktemp("runs") / "whole")
