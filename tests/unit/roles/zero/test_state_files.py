"""DeepSpeed's files of a checkpoint: hashed as they are written, and read without running what a stranger put in."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.zero.config import ZeroStageEnum

from roles.durable import hash_of
from roles.errors import RoleError
from roles.zero.state_files import StateFiles


class Malicious:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


def test_what_was_written_is_read_and_hashed(tmp_path: Path) -> None:
    files, path = StateFiles(), tmp_path / "optim_states.pt"
    state = {"step": 3, "stage": ZeroStageEnum.weights, "groups": [{"lr": 1e-3}], "moments": torch.randn(9)}
    files.save(state, str(path))
    assert files.hashes == {path: hash_of(path)}
    again = files.load(str(path))
    assert torch.equal(again.pop("moments"), state.pop("moments")) and again == state


@pytest.mark.parametrize("how", ["torch.save", "old torch.save", "plain pickle"])
def test_what_a_stranger_put_in_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "optim_states.pt", tmp_path / "mark"
    state = {"step": 3, "optimizer": Malicious(mark)}
    if how == "plain pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=how == "torch.save")
    with pytest.raises(RoleError, match=r"optim_states\.pt is no file of a checkpoint, and nothing in it was run"):
        StateFiles().load(str(path))
    assert not mark.exists()


def test_a_file_of_zeros_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(bytes(1000))
    with pytest.raises(RoleError, match=r"x\.pt is no file of a checkpoint"):
        StateFiles().load(str(tmp_path / "x.pt"))
