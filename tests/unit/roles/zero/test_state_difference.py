"""Two files of saved state are the same bit for bit, or the first part that differs is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from roles.errors import RoleError
from roles.zero.state_difference import state_difference


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "module.w": torch.randn(4, 3, generator=generator),
        "module.b": torch.zeros(2, dtype=torch.bfloat16),
        "empty": torch.zeros(0),
    }


def schedule() -> dict[str, Any]:
    return {"steps": 7, "groups": [{"lr": 0.1, "betas": (0.9, 0.95)}, {"lr": 0.2}]}


def files(folder: Path, first: Any, second: Any, suffix: str = ".safetensors") -> tuple[Path, Path]:
    paths = folder / f"first{suffix}", folder / f"second{suffix}"
    for path, value in zip(paths, (first, second), strict=True):
        if suffix == ".safetensors":
            save_file(value, path)
        else:
            path.write_text(value if isinstance(value, str) else json.dumps(value))
    return paths


def test_the_same_content_in_other_bytes(tmp_path: Path) -> None:
    first, second = files(tmp_path, state(), state())
    save_file(state(), second, {"format": "pt"})
    assert first.read_bytes() != second.read_bytes()
    assert state_difference(first, second) is None


def changed_number(saved: dict[str, Any]) -> None:
    saved["module.w"][1, 2] += 0.5
    saved["module.w"][0, 0] += 0.25


def sign_of_zero(saved: dict[str, Any]) -> None:
    saved["module.b"][1] = -0.0


def other_shape(saved: dict[str, Any]) -> None:
    saved["module.w"] = saved["module.w"].view(3, 4)


def other_dtype(saved: dict[str, Any]) -> None:
    saved["module.b"] = saved["module.b"].to(torch.float16)


def gone(saved: dict[str, Any]) -> None:
    del saved["groups"][1]


def another_number(saved: dict[str, Any]) -> None:
    saved["groups"][0]["betas"] = (0.9, 0.99)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed_number, "module.w: 2 of 12 numbers, by at most 0.5"),
        (sign_of_zero, "module.b: 1 of 2 numbers, by at most 0"),
        (other_shape, "module.w: float32[4, 3] and float32[3, 4]"),
        (other_dtype, "module.b: bfloat16[2] and float16[2]"),
        (gone, "groups[1]: {'lr': 0.2} and nothing"),
        (another_number, "groups[0].betas[1]: 0.95 and 0.99"),
    ],
)
def test_the_first_part_that_differs_is_named(tmp_path: Path, change: Any, said: str) -> None:
    make, suffix = (schedule, ".json") if said.startswith("groups") else (state, ".safetensors")
    other = make()
    change(other)
    assert state_difference(*files(tmp_path, make(), other, suffix)) == said


@pytest.mark.parametrize(
    ("suffix", "first", "second", "said"),
    [
        (".safetensors", {"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(1)}, "b: nothing and tensor([1.])"),
        (".json", {"a": [1, 2]}, {"a": [1, 3]}, "a[1]: 2 and 3"),
        (".json", '{"a": NaN}', '{"a":  NaN}', None),
        (".py", "x", "y", "other bytes"),
        (".py", "x", "x", None),
    ],
)
def test_every_kind_of_file(tmp_path: Path, suffix: str, first: Any, second: Any, said: str | None) -> None:
    assert state_difference(*files(tmp_path, first, second, suffix)) == said


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_no_code_of_a_file_runs(tmp_path: Path, suffix: str) -> None:
    first, second = (tmp_path / f"{name}{suffix}" for name in ("first", "second"))
    for file in (first, second):
        torch.save({"a": Path("x")}, file)
    with pytest.raises(RoleError, match=r"nothing in it was run|is not JSON"):
        state_difference(first, second)
