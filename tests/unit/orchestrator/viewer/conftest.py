from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator.viewer.written_runs import (
    a_run,
)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps; no test changes it."""
    return a_run(tmp_path_factory.mktemp("runs") / "whole")
