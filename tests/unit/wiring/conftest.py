"""The folder of tiny models that all cases share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.unit.wiring import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and prompts."""
    made = tmp_path_factory.mktemp("wiring")
    tiny.write(made)
    return made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Arrays are too small to be shared out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
