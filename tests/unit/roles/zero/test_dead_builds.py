"""What a killed compilation leaves does not hold up the next one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn
from torch.utils.file_baton import FileBaton

from roles.config.models import OptimizerConfig, ZeroConfig
from roles.zero.dead_builds import without_dead_builds
from roles.zero.optimizer import make_optimizer


def locked(root: Path, folder: str, age_s: float) -> Path:
    lock = root / folder / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - age_s,) * 2)
    return lock


def test_who_waits_for_a_dead_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead, living = locked(tmp_path, "cpu_adam", 700), locked(tmp_path, "py311_cu130/fused_adam", 100)
    with without_dead_builds(every_s=0.05):
        FileBaton(str(dead)).wait()  # without end, if nobody removes it
    assert living.exists() and not dead.exists()


@pytest.mark.parametrize(
    ("name", "zero"),
    [("DeepSpeedCPUAdam", ZeroConfig(offload_optimizer=True)), ("FusedAdam", ZeroConfig(sleep=True))],
)
def test_an_optimizer_that_is_compiled_is_not_held_up(
    name: str, zero: ZeroConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead = locked(tmp_path, "adam", 700)

    def compiled(groups: Any, **options: Any) -> str:
        until = time.monotonic() + 20
        while dead.exists():
            assert time.monotonic() < until, "it waits for a build that is dead"
            time.sleep(0.01)
        return "made"

    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", SimpleNamespace(**{name: compiled}))
    assert make_optimizer(OptimizerConfig(learning_rate=1e-3), nn.Linear(2, 2), zero) == "made"


def test_a_lock_that_grows_too_old_while_others_wait_is_removed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    young = locked(tmp_path, "cpu_adam", 0)
    with without_dead_builds(build_s=0.5, every_s=0.05):
        assert young.exists()
        FileBaton(str(young)).wait()
