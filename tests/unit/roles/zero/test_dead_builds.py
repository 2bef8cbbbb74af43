"""What a killed compilation leaves does not hold up the next one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from torch.utils.file_baton import FileBaton

from roles.zero.dead_builds import without_dead_builds


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


def test_a_lock_that_grows_too_old_while_others_wait_is_removed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    young = locked(tmp_path, "cpu_adam", 0)
    with without_dead_builds(build_s=0.5, every_s=0.05):
        assert young.exists()
        FileBaton(str(young)).wait()
