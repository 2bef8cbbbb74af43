from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.orchestrator.config.files import MINIMAL, PAIRS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.yaml"
    path.write_text(PAIRS)
    return path
