"""What a run's models consist of: what counts, what is read again, and that nothing can hide a change."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.loading import load_config
from orchestrator.config.run import RunConfig
from orchestrator.run import model_contents as contents
from orchestrator.run.model_contents import FileHashes, model_contents
from roles.config.models import ModelConfig
from roles.model_files.source_files import source_files

TINY = Path(__file__).resolve().parents[4] / "configs/tiny.yaml"


def folder(path: Path, **files: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_the_files_that_decide_what_is_loaded(tmp_path: Path) -> None:
    base = folder(tmp_path / "base", config__json="{}", model__safetensors="w", README__md="r", picture__png="p")
    assert list(source_files(ModelConfig(path=str(base)))) == ["config.json", "model.safetensors"]
    said = json.dumps({"base_model_name_or_path": str(base), "peft_type": "LORA"})
    adapter = folder(tmp_path / "adapter", adapter_config__json=said, adapter_model__safetensors="a")
    assert list(source_files(ModelConfig(path=str(adapter)))) == [
        *("adapter_config.json", "adapter_model.safetensors"),
        *("base of the adapter/config.json", "base of the adapter/model.safetensors"),
    ]
    gguf = folder(tmp_path / "gguf", a__gguf="a", b__gguf="b")
    assert source_files(ModelConfig(path=str(gguf), gguf_file="b.gguf")) == {"b.gguf": gguf / "b.gguf"}


def test_a_file_is_read_once_as_long_as_it_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def hash_of(file: Path) -> str:
        read.append(file.name)
        return file.read_text()

    monkeypatch.setattr(contents, "hash_of", hash_of)
    monkeypatch.setattr(contents, "SETTLED_S", -1.0)
    file, cache = tmp_path / "model.safetensors", tmp_path / "cache/hashes.json"
    file.write_text("one")
    for _ in range(2):
        hashes = FileHashes(cache)
        assert hashes.of(file) == hashes.of(file) == "one"
        hashes.keep()
    assert read == ["model.safetensors"]
    facts = file.stat()
    file.write_text("two")
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # as `cp -p` and `touch` do
    assert FileHashes(cache).of(file) == "two", "the time was set back"
    cache.write_text("[")
    assert FileHashes(cache).of(file) == "two"


def test_what_has_just_changed_is_read_again(tmp_path: Path) -> None:
    """A second change may come within the same tick of the file system's clock."""
    file, cache = tmp_path / "model.safetensors", tmp_path / "hashes.json"
    file.write_text("one")
    hashes = FileHashes(cache)
    hashes.of(file)
    hashes.keep()
    assert not cache.exists()


def test_every_model_of_a_run_counts_and_one_that_is_not_there_does_not_end_it(tmp_path: Path) -> None:
    config = models_of(tmp_path)
    found = model_contents(config)
    assert set(found) == {"actor", "critic", "reference", "reward"}
    assert found["actor"] == found["reference"] != found["reward"] == found["critic"]
    shutil.rmtree(tmp_path / "reward")
    assert set(model_contents(config)) == {"actor", "reference"}


def models_of(root: Path, *overrides: str) -> RunConfig:
    """A configuration of small files that are called models."""
    actor = folder(root / "actor", config__json="{}", model__safetensors="actor")
    reward = folder(root / "reward", config__json="{}", model__safetensors="reward")
    models: dict[str, Any] = {
        "actor.model": {"path": str(actor)},
        "reference.model": "null",
        "critic.model": "null",
        "reward": {"type": "model", "model": {"path": str(reward)}},
        "run_dir": str(root / "run"),
        "model_cache": str(root / "cache"),
    }
    said = [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in models.items()]
    return load_config(TINY, [*said, *overrides])


def test_reading_goes_on_beside_the_start_and_what_is_known_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, started = models_of(tmp_path), threading.Event()

    def slow(file: Path) -> str:
        assert file.parent.name == "actor" or started.wait(60), "the start waits for it"
        return file.read_text()

    monkeypatch.setattr(contents, "hash_of", slow)
    meanwhile = contents.ContentsMeanwhile(config)
    while not meanwhile.known():
        assert not meanwhile.wait(0.01)
    assert meanwhile.known() == {"actor": {"config.json": "{}", "model.safetensors": "actor"}}
    started.set()
    assert meanwhile.wait(60) and meanwhile.known() == meanwhile.known() == model_contents(config)


def test_an_error_while_reading_is_raised_where_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(file: Path) -> str:
        raise RecursionError("an odd file")

    config = models_of(tmp_path)
    monkeypatch.setattr(contents, "hash_of", broken)
    meanwhile = contents.ContentsMeanwhile(config)
    assert meanwhile.wait(60)
    for _ in range(2):
        with pytest.raises(RecursionError, match="an odd file"):
            meanwhile.known()
