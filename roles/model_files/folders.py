"""Paths of model folders as users write them, and what kind of folder stands there. Imports no library."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from roles.errors import ModelError
from roles.text.json_files import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's file: the folder holds changes to the weights of another one."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
"""Any of them makes a tokenizer."""

MERGED = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "VERA", "HRA")
"""Kinds of adapters that can be merged into weights; others add tokens or layers."""

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

REVISION = r"[A-Za-z0-9][A-Za-z0-9._/-]*"
"""A commit, tag or branch of the hub."""

MODEL_FILES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".py")
"""Endings of the files that are read of a model's folder: weights, settings, tokenizer, chat template, code."""

SPLIT = re.compile(r"(?P<name>.*)-\d{5}-of-(?P<parts>\d{5})\.gguf")


def folder_of(path: str) -> Path:
    """The folder that a user calls `path`; whether it is there is asked with `os.path.isdir`, which never raises."""
    return Path(os.path.expanduser(path))


def files_of_model(folder: Path) -> list[Path]:
    """All files of `folder` that decide what is loaded from it."""
    return sorted(file for file in folder.iterdir() if file.suffix in MODEL_FILES and file.is_file())


def is_adapter(folder: Path) -> bool:
    """Whether `folder` has an adapter and no model."""
    return os.path.isfile(folder / ADAPTER_CONFIG) and not os.path.isfile(folder / "config.json")


def base_of(folder: Path) -> str:
    """The path or hub name of the model that the adapter in `folder` changes."""
    said = read_json_object(folder / ADAPTER_CONFIG)
    base, kind = said.get("base_model_name_or_path"), said.get("peft_type")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{ADAPTER_CONFIG} names no base_model_name_or_path; write the base model's folder or hub name there"
        )
    if kind not in MERGED:
        raise ModelError(
            f"it is an adapter of kind {kind!r} (peft_type in {ADAPTER_CONFIG}), which cannot be merged into weights; "
            f"use the base model {base}"
        )
    if not any(os.path.isfile(folder / name) for name in ADAPTER_WEIGHTS):
        raise ModelError(f"it is an adapter without {ADAPTER_WEIGHTS[0]}; fetch it anew")
    return base


def base_revision(folder: Path) -> str | None:
    """The commit, tag or branch of the hub's base model that the adapter in `folder` names, as PEFT writes it; None if
    it names none."""
    said = read_json_object(folder / ADAPTER_CONFIG).get("revision")
    if said is not None and (not isinstance(said, str) or not re.fullmatch(REVISION, said)):
        raise ModelError(f"{ADAPTER_CONFIG} has the revision {said!r}, which is none of the hub; correct or remove it")
    return said


def what_it_is(folder: Path, key: str) -> str:
    """Fix for a model at `key` whose `folder` has no config.json, by what the folder has instead."""
    ggufs = sorted(file.name for file in folder.glob("*.gguf"))
    if ggufs:
        return _gguf(ggufs, key)
    inner = sorted(file.parent.name for file in folder.glob("*/config.json"))
    if inner:
        many = f" (or another of its {len(inner)} folders with one)" if len(inner) > 1 else ""
        return f"set {key}.path to its folder {inner[-1]}{many}"
    return "name the folder that `save_pretrained` wrote"


def _gguf(files: Sequence[str], key: str) -> str:
    split = SPLIT.fullmatch(files[0])
    if split is not None:
        whole = f"{split['name']}.gguf"
        return (
            f"it holds a GGUF file in {int(split['parts'])} parts: make one of them (llama-gguf-split --merge "
            f"{files[0]} {whole}) and set {key}.gguf_file={whole}"
        )
    others = f" or another of its {len(files)} GGUF files ({', '.join(files[:4])})" if len(files) > 1 else ""
    return f"set {key}.gguf_file={files[0]}{others}"
