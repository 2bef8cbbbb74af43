"""Every architecture is trained, pushed, saved and read as transformers and vLLM do it, or refused before the start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration import architectures
from tests.integration.architecture_table import measured, trainer
from tests.integration.ranks import Ranks


@pytest.fixture(scope="module")
def rank() -> Iterator[Ranks]:
    with trainer() as process:
        yield process


@pytest.mark.slow
@pytest.mark.parametrize("name", architectures.NAMES)
def test_an_architecture_is_right_or_refused(tmp_path: Path, rank: Ranks, name: str) -> None:
    """pytest shows the lines of the table of one that is wrong; `make architectures` writes all."""
    row = measured(name, rank, tmp_path)
    print(*row.lines(), sep="\n")
    assert row.faults() == []
