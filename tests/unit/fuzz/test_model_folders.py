"""Model folders with something odd in them: the roles can run them, or they are refused with the folder."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fuzz.commands import examples
from tests.unit.fuzz.damage import damaged
from tests.unit.fuzz.odd import json_values
from tests.unit.fuzz.world import World

SMALL_FILES = ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
KEYS = {
    "config.json": [
        *(
            "quantization_config",
            "text_config",
            "layer_types",
            "auto_map",
            "sliding_window",
            "rope_scaling",
            "head_dim",
        ),
        *(
            "num_local_experts",
            "architectures",
            "num_labels",
            "id2label",
            "tetrarch",
            "score_pooling",
            "is_encoder_decoder",
        ),
        *(
            "torch_dtype",
            "vision_config",
            "kv_lora_rank",
            "pad_token_id",
            "attn_implementation",
            "transformers_version",
        ),
    ],
    "tokenizer_config.json": ["chat_template", "auto_map", "added_tokens_decoder", "extra_special_tokens", "use_fast"],
}
"""Keys that other models have."""
NAMES = [
    *(
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "adapter_config.json",
        "vocab.txt",
    ),
    *(
        "tokenizer.model",
        "chat_template.jinja",
        "special_tokens_map.json",
        "added_tokens.json",
        "model.gguf",
        "modeling_x.py",
    ),
    *("vocab.json", "merges.txt", "preprocessor_config.json", "spiece.model", "quantize_config.json", "params.json"),
]
"""Files that other folders have."""
PIECES = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b"x",
    b"\0" * 64,
    b"{{ x",
    b"{% for %}",
    b'{"weight_map": {}}',
    b'{"weight_map": {"a": "../x"}}',
    b'{"weight_map": {"a": 1}}',
    b'{"weight_map": {"a": "model.safetensors"}}',
    b'{"weight_map": ["a"]}',
    b"{{ messages[9].x.y }}",
    b"version https://git-lfs.github.com/spec/v1\n",
    b"\x80\x02.",
    b"PK\x03\x04",
    b"GGUF\x03\0\0\0",
]


@pytest.fixture(scope="module")
def folder(world: World) -> Path:
    """A copy that the examples change, for a reward model that is trained from it."""
    return shutil.copytree(world.inputs / "policy", world.root / "brought")


def train(world: World, folder: Path, **keys: Any) -> str | None:
    """How `tetrarch reward` refuses the folder as its model."""
    data = copy.deepcopy(world.data)
    data["reward_training"]["model"] = {"path": str(folder), **keys}
    refused = world.refusal("reward", world.write(data))
    assert refused is None or str(folder) in refused or "reward_training" in refused, refused
    return refused


def test_the_folder_is_sound(world: World, folder: Path) -> None:
    assert train(world, folder) is None


def all_paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value in a JSON file, the long vocabulary only in part."""
    inner = list(data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else [])[:40]
    return [*([path] if path else []), *(deeper for key, value in inner for deeper in all_paths(value, (*path, key)))]


@examples(10)
@given(st.data(), st.sampled_from(SMALL_FILES[:3]), json_values)
def test_an_odd_value_in_a_small_file(world: World, folder: Path, data: st.DataObject, name: str, value: Any) -> None:
    content = json.loads((folder / name).read_text())
    paths = all_paths(content) + [(key,) for key in KEYS.get(name, [])]
    *path, key = data.draw(st.sampled_from(paths))
    section = content
    for part in path:
        section = section[part]
    section[key] = value
    with world.changed(folder / name, json.dumps(content).encode()):
        train(world, folder)


@examples(8)
@given(st.data(), st.sampled_from([*SMALL_FILES, "model.safetensors"]))
def test_a_damaged_file(world: World, folder: Path, data: st.DataObject, name: str) -> None:
    sound = (folder / name).read_bytes()
    head, rest = sound[:4000], sound[4000:]
    with world.changed(folder / name, data.draw(damaged(head)) + rest):
        train(world, folder)


@examples(6)
@given(json_values, st.sampled_from(["dtype", "shape", "data_offsets", ""]), st.booleans())
def test_an_odd_value_in_the_header_of_the_weights(
    world: World, folder: Path, value: Any, part: str, first: bool
) -> None:
    file = folder / "model.safetensors"
    sound = file.read_bytes()
    size = int.from_bytes(sound[:8], "little")
    header = json.loads(sound[8 : 8 + size])
    name = [key for key in header if key != "__metadata__"][0 if first else -1]
    if part:
        header[name][part] = value
    else:
        header[name] = value
    text = json.dumps(header).encode()
    with world.changed(file, len(text).to_bytes(8, "little") + text + sound[8 + size :]):
        train(world, folder)


@examples(6)
@given(st.sampled_from(NAMES), st.sampled_from(PIECES))
def test_a_file_too_many(world: World, folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    try:
        train(world, folder)
    finally:
        (folder / name).unlink()


@pytest.mark.parametrize("name", [*SMALL_FILES, "model.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "dangling", "unreadable"])
def test_a_file_that_is_none(world: World, folder: Path, name: str, kind: str) -> None:
    file, sound = folder / name, (folder / name).read_bytes()
    file.unlink()
    match kind:
        case "folder":
            file.mkdir()
        case "loop":
            file.symlink_to(name)
        case "dangling":
            file.symlink_to("nowhere")
        case "unreadable":
            file.symlink_to("/proc/self/mem")
    try:
        train(world, folder)
    finally:
        if kind == "folder":
            file.rmdir()
        elif kind != "missing":
            file.unlink()
        file.write_bytes(sound)
