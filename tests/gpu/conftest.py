"""What the tests on a card share: models, and a reason to skip where there is no card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import models

ROOT = Path(__file__).resolve().parents[2]
RANK_S = 120.0


@pytest.fixture(autouse=True, scope="session")
def card() -> str:
    """Its name."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is visible: these tests are for a machine with a GPU (make test-gpu)")
    return torch.cuda.get_device_name()


@pytest.fixture(scope="session")
def folder_of(card: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name of a shape → its folder; kept between sessions where TETRARCH_GPU_MODELS names a place."""
    root = Path(os.environ.get("TETRARCH_GPU_MODELS") or tmp_path_factory.mktemp("models"))
    return lambda name: models.write(root / name, name)


class Rank:
    """`rank.py` under way."""

    def __init__(self, folder: Path, spec: dict[str, Any]) -> None:
        command = [sys.executable, "-m", "tests.gpu.rank", str(folder), json.dumps(spec)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **OFFLINE},
        )

    def result(self) -> dict[str, Any]:
        """What it tells; its output where it fails."""
        try:
            output, _ = self._process.communicate(timeout=RANK_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
            pytest.fail(f"no answer within {RANK_S} s:\n{output[-3000:]}")
        lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
        if self._process.returncode or not lines:
            pytest.fail(output[-3000:])
        result: dict[str, Any] = json.loads(lines[-1].removeprefix("RESULT "))
        return result


OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2"}
