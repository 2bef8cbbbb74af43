"""Numbers of a frozen model on the disk: found again by content, and believed only as they were written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orchestrator.run.reference_cache import cached, content_key, keep
from roles.batch import Sequences

NUMBERS = torch.tensor([-1.5, -2.25, -0.125])


def sequences(last: int = 7, asked: bool = True) -> Sequences:
    tokens = torch.tensor([[1, 2, 3], [4, 5, last]])
    return Sequences(tokens, torch.tensor([3, 3]), torch.tensor([[False, asked, True]] * 2))


def test_what_was_kept_is_found_by_content_alone(tmp_path: Path) -> None:
    key = content_key("model", sequences())
    assert key == content_key("model", sequences())
    others = [("other", sequences()), ("model", sequences(8)), ("model", sequences(asked=False))]
    assert len({key, *(content_key(*other) for other in others)}) == 4
    assert cached(tmp_path, key, 3) is None
    keep(tmp_path, key, NUMBERS)
    found = cached(tmp_path, key, 3)
    assert found is not None and torch.equal(found, NUMBERS)
    assert [file.name for file in tmp_path.iterdir()] == [f"{key}.safetensors"]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "other numbers", "other key", "count", "folder", "text"])
def test_a_file_that_is_not_what_was_written_is_not_believed(tmp_path: Path, damage: str) -> None:
    keep(tmp_path, "key", NUMBERS)
    file = tmp_path / "key.safetensors"
    content = file.read_bytes()
    match damage:
        case "bit":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut":
            file.write_bytes(content[:-2])
        case "empty":
            file.write_bytes(b"")
        case "other numbers":
            save_file({"logprobs": NUMBERS + 1}, file)
        case "other key":
            keep(tmp_path, "another", NUMBERS)
            (tmp_path / "another.safetensors").replace(file)
        case "folder":
            file.unlink()
            file.mkdir()
        case "text":
            save_file({"numbers": NUMBERS}, file)
    assert cached(tmp_path, "key", 4 if damage == "count" else 3) is None
    if damage not in ("count", "folder"):
        keep(tmp_path, "key", NUMBERS)
        assert cached(tmp_path, "key", 3) is not None, "it is asked again, and kept anew"
