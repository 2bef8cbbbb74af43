"""The world that all examples share."""

from __future__ import annotations

import runpy
from collections.abc import Iterator

import pytest

from tests.unit.fuzz.commands import nothing_starts
from tests.unit.fuzz.world import ROOT, World


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("world")
    runpy.run_path(str(ROOT / "configs/tiny/inputs.py"))["write"](root / "inputs")
    with nothing_starts():
        yield World(root)
