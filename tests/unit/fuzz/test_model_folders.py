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


ROLES = {"reward_training": "reward", "sft": "sft", "actor": "train", "reward": "train"}
"""Section → the command that reads its model."""


@pytest.fixture(scope="module")
def folders(world: World) -> dict[str, Path]:
    """Section → a copy of a folder that the examples change."""
    kinds = {section: "reward" if section == "reward" else "policy" for section in ROLES}
    found = {section: shutil.copytree(world.inputs / kind, world.root / section) for section, kind in kinds.items()}
    shutil.copy(world.inputs / "policy/generation_config.json", found["reward"])  # a classifier's has none
    return found


def bring(world: World, folders: dict[str, Path], section: str) -> str | None:
    """How the command of a section refuses the folder as its model."""
    data, folder = copy.deepcopy(world.data), str(folders[section])
    data[section]["model"] = {"path": folder}
    refused = world.refusal(ROLES[section], world.write(data))
    assert refused is None or folder in refused or section in refused, refused
    return refused


@pytest.mark.parametrize("section", ROLES)
def test_the_folder_is_sound(world: World, folders: dict[str, Path], section: str) -> None:
    assert bring(world, folders, section) is None


sections = st.sampled_from(sorted(ROLES))


def all_paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every value in a JSON file, the long vocabulary only in part."""
    inner = list(data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else [])[:40]
    return [*([path] if path else []), *(deeper for key, value in inner for deeper in all_paths(value, (*path, key)))]


@examples(10)
@given(sections, st.data(), st.sampled_from(SMALL_FILES[:3]), json_values)
def test_an_odd_value_in_a_small_file(
    world: World, folders: dict[str, Path], section: str, data: st.DataObject, name: str, value: Any
) -> None:
    content = json.loads((folders[section] / name).read_text())
    paths = all_paths(content) + [(key,) for key in KEYS.get(name, [])]
    *path, key = data.draw(st.sampled_from(paths))
    place = content
    for part in path:
        place = place[part]
    place[key] = value
    with world.changed(folders[section] / name, json.dumps(content).encode()):
        bring(world, folders, section)


@examples(8)
@given(sections, st.data(), st.sampled_from([*SMALL_FILES, "model.safetensors"]))
def test_a_damaged_file(world: World, folders: dict[str, Path], section: str, data: st.DataObject, name: str) -> None:
    sound = (folders[section] / name).read_bytes()
    head, rest = sound[:4000], sound[4000:]
    with world.changed(folders[section] / name, data.draw(damaged(head)) + rest):
        bring(world, folders, section)


@examples(6)
@given(sections, json_values, st.sampled_from(["dtype", "shape", "data_offsets", ""]), st.booleans())
def test_an_odd_value_in_the_header_of_the_weights(
    world: World, folders: dict[str, Path], section: str, value: Any, part: str, first: bool
) -> None:
    file = folders[section] / "model.safetensors"
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
        bring(world, folders, section)


@examples(6)
@given(sections, st.sampled_from(NAMES), st.sampled_from(PIECES))
def test_a_file_too_many(world: World, folders: dict[str, Path], section: str, name: str, content: bytes) -> None:
    (folders[section] / name).write_bytes(content)
    try:
        bring(world, folders, section)
    finally:
        (folders[section] / name).unlink()


@pytest.mark.parametrize("name", [*SMALL_FILES, "model.safetensors"])
@pytest.mark.parametrize("kind", ["missing", "folder", "loop", "dangling", "unreadable"])
def test_a_file_that_is_none(world: World, folders: dict[str, Path], name: str, kind: str) -> None:
    section = "actor"
    file, sound = folders[section] / name, (folders[section] / name).read_bytes()
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
        bring(world, folders, section)
    finally:
        if kind == "folder":
            file.rmdir()
        elif kind != "missing":
            file.unlink()
        file.write_bytes(sound)
