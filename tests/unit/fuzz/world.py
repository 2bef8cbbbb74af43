"""A folder with all that a configuration names: the inputs of `configs/tiny.yaml`, and functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
INPUTS = "runs/inputs/tiny"


class World:
    """Sound inputs in `root`; `changed` gives a file a damaged content for a while."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inputs = root / "inputs"
        text = (ROOT / "configs/tiny.yaml").read_text(encoding="utf-8")
        text = text.replace(INPUTS, str(self.inputs)).replace("runs/", f"{root}/runs/")
        self.data: dict[str, Any] = {**yaml.safe_load(text), "model_cache": str(root / "cache")}
        self.data["actor"]["optimizer"]["learning_rate"] = self.data["critic"]["optimizer"]["learning_rate"] = 0.003
        self.data["reward_training"]["optimizer"]["learning_rate"] = 0.001
        self.file = self.write(self.data, "tiny.yaml")

    def write(self, data: dict[str, Any], name: str = "changed.yaml") -> Path:
        file = self.root / name
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        return file

    def write_bytes(self, data: bytes, name: str) -> Path:
        file = self.root / name
        file.write_bytes(data)
        return file

    @contextmanager
    def changed(self, file: Path, data: bytes) -> Iterator[None]:
        """With other bytes in the file."""
        sound = file.read_bytes()
        file.write_bytes(data)
        try:
            yield
        finally:
            file.write_bytes(sound)
