"""A folder with all that a configuration names: the inputs of `configs/tiny.yaml`, and functions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.unit.fuzz.commands import refusal

ROOT = Path(__file__).resolve().parents[3]
INPUTS = "runs/inputs/tiny"


class World:
    """Sound inputs in `root`; `changed` gives a file a damaged content for a while."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inputs, self.cache = root / "inputs", root / "cache"
        text = (ROOT / "configs/tiny.yaml").read_text(encoding="utf-8")
        text = text.replace(INPUTS, str(self.inputs)).replace("runs/", f"{root}/runs/")
        self.data: dict[str, Any] = {**yaml.safe_load(text), "model_cache": str(self.cache)}
        self.data["actor"]["optimizer"]["learning_rate"] = self.data["critic"]["optimizer"]["learning_rate"] = 0.003
        self.data["reward_training"]["optimizer"]["learning_rate"] = 0.001
        self.data["sft"] = {
            "output": f"{root}/runs/tiny-sft/model",
            "model": {"path": str(self.inputs / "policy")},
            "data": {"path": str(self.inputs / "pairs.jsonl"), "columns": {"completion": "chosen"}, "chat": True},
            "max_tokens": 64,
        }
        text = (ROOT / "configs/label.yaml").read_text(encoding="utf-8").replace(INPUTS, str(self.inputs))
        self.data["labelling"] = {**yaml.safe_load(text)["labelling"], "output": str(root / "labels")}
        self.file = self.write(self.data, "tiny.yaml")

    def write(self, data: dict[str, Any], name: str = "changed.yaml") -> Path:
        file = self.root / name
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        return file

    def write_bytes(self, data: bytes, name: str) -> Path:
        file = self.root / name
        file.write_bytes(data)
        return file

    def refusal(self, command: str, *arguments: str | Path) -> str | None:
        """How `tetrarch COMMAND` refuses its arguments, in less than ten CPU seconds and without a change of any file;
        None: it would start."""
        before, used = self._files(), sum(os.times()[:4])
        refused = refusal(command, *arguments)
        if refused is not None:
            assert sum(os.times()[:4]) - used < 10, refused
            assert self._files() == before, refused
        return refused

    def _files(self) -> dict[Path, tuple[int, int]]:
        """Everything but converted models → size and time of the last change; of a folder, that it is there."""
        found = {}
        for path in self.root.rglob("*"):
            if self.cache not in path.parents:
                stat = path.lstat()
                found[path] = (0, 0) if path.is_dir() else (stat.st_size, stat.st_mtime_ns)
        return found

    @contextmanager
    def changed(self, file: Path, data: bytes) -> Iterator[None]:
        """With other bytes in the file."""
        sound = file.read_bytes()
        file.write_bytes(data)
        try:
            yield
        finally:
            file.write_bytes(sound)
