from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator.run.saved_runs import Saved


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    return Saved(tmp_path / "run")
