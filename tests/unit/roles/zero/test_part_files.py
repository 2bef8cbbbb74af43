"""Files of a training state: hashed as they are written, read by ranges, and never run."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from roles.durable import hash_of
from roles.errors import RoleError
from roles.zero.part_files import PartFiles, PartName, write_parts

NUMBERS = torch.randn(100)


def written(folder: Path, *bounds: int) -> None:
    """`NUMBERS` as the weight `a.b`, cut at `bounds`, in a file for each piece."""
    for rank, (start, end) in enumerate(itertools.pairwise(bounds)):
        write_parts(folder / f"{rank}.safetensors", {PartName("weight", start, "a.b"): NUMBERS[start:end]})


def test_others_can_open_a_file_and_its_hash_is_told(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    parts = {
        PartName("frozen", 3, "odd"): torch.arange(5).to(torch.bfloat16),  # 10 bytes
        PartName("weight", 0, "a"): torch.randn(7),
        PartName("step", 0, "a"): torch.tensor([2**40]),
        PartName("weight", 0, "every second one"): torch.randn(6)[::2],
    }
    assert write_parts(file, parts) == hash_of(file)
    found = load_file(file)
    assert found.keys() == {str(name) for name in parts}
    assert all(torch.equal(found[str(name)], tensor) for name, tensor in parts.items())


@pytest.mark.parametrize("bounds", [(0, 100), (0, 1, 100), (0, 33, 66, 99, 100), tuple(range(101))])
def test_any_range_is_read_however_it_was_cut(tmp_path: Path, bounds: tuple[int, ...]) -> None:
    written(tmp_path, *bounds)
    files = PartFiles(tmp_path)
    for start, end in [(0, 100), (0, 1), (99, 100), (30, 70), (33, 66), (50, 50)]:
        into = torch.full((end - start,), torch.nan)
        files.read("weight", "a.b", start, into)
        assert torch.equal(into, NUMBERS[start:end])
    assert files.first("weight", "a.b") == NUMBERS[0]
    assert files.first("exp_avg", "a.b") is None and files.first("weight", "a") is None


def test_a_range_that_is_not_all_there_is_refused(tmp_path: Path) -> None:
    written(tmp_path, 0, 40)
    with pytest.raises(RoleError, match=r"holds 10 of the 60 numbers of a\.b \(weight\) from 30 on"):
        PartFiles(tmp_path).read("weight", "a.b", 30, torch.zeros(60))
    with pytest.raises(RoleError, match=r"holds 0 of the 1 numbers of c \(weight\)"):
        PartFiles(tmp_path).read("weight", "c", 0, torch.zeros(1))


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


@pytest.mark.parametrize("how", ["torch.save", "pickle", "zeros", "empty", "another name"])
def test_what_a_stranger_put_in_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, mark = tmp_path / "rank-00000.safetensors", tmp_path / "mark"
    match how:
        case "torch.save":
            torch.save(Malicious(mark), path)
        case "pickle":
            path.write_bytes(pickle.dumps(Malicious(mark)))
        case "zeros" | "empty":
            path.write_bytes(bytes(1000 if how == "zeros" else 0))
        case "another name":
            write_parts(path, {"weight": torch.zeros(1)})  # type: ignore[dict-item]
    with pytest.raises(RoleError, match=r"rank-00000\.safetensors is no file of a checkpoint, and nothing in it was"):
        PartFiles(tmp_path)
    assert not mark.exists()
