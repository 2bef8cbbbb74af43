"""Broken, odd and foreign model folders at the door: each is refused by file and fix, or read right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from orchestrator.checks.engine_fit import check_planned_engine
from orchestrator.errors import ConfigError
from orchestrator.planning.layout_planner import layout
from roles.model_files import hub
from tests.unit.orchestrator.checks.door import World, check, model_folder, refused, rewrite, say

Change = Callable[[Path], object]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A function in place of the reward model, so that one folder is looked at."""
    world = World(tmp_path)
    world.set("reward", {"type": "function", "path": str(world.function)})
    world.set("critic.initialise_from", "policy")
    return world


def write(name: str, content: str | bytes) -> Change:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def tell(name: str, **keys: Any) -> Change:
    """Change keys of a JSON file, which need not be there."""

    def change(folder: Path) -> None:
        said = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(said | keys))

    return change


def link(name: str, to: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return change


def header(**keys: Any) -> Change:
    """Change what the header of the weights says of the first norm."""

    def change(folder: Path) -> None:
        file = folder / "model.safetensors"
        raw = file.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        said = json.loads(raw[8 : 8 + size])
        said["model.layers.0.input_layernorm.weight"] |= keys
        text = json.dumps(said).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])

    return change


def index(weight_map: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


DEEP = "[" * 100_000 + "]" * 100_000
BAD: dict[str, tuple[Change, list[str]]] = {
    "tokenizer {}": (write("tokenizer.json", "{}"), ["tokenizer.json is not a tokenizer", "fetch it anew"]),
    "tokenizer []": (write("tokenizer.json", "[]"), ["tokenizer.json is not a tokenizer"]),
    "tokenizer cut": (write("tokenizer.json", '{"model": {"vocab": {'), ["tokenizer.json is not a tokenizer", "EOF"]),
    "tokenizer binary": (write("tokenizer.json", bytes(range(256))), ["tokenizer.json is not a tokenizer", "UTF-8"]),
    "tokenizer config []": (write("tokenizer_config.json", "[]"), ["tokenizer_config.json is not a JSON object"]),
    "tokenizer class": (tell("tokenizer_config.json", tokenizer_class=5), ["no tokenizer can be loaded", "endswith"]),
    "eos of a number": (tell("tokenizer_config.json", eos_token=7), ["no tokenizer can be loaded", "eos_token"]),
    "length of a word": (tell("tokenizer_config.json", model_max_length="big"), ["no tokenizer can be loaded"]),
    "special tokens": (write("special_tokens_map.json", "[]"), ["special_tokens_map.json is not a JSON object"]),
    "own tokenizer": (
        tell("tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": ["x.X", None]}),
        ["code of its own", "set trust_remote_code: true"],
    ),
    "ends beyond": (tell("generation_config.json", eos_token_id=99), ["generation_config.json says eos_token_id=99"]),
    "generation config": (write("generation_config.json", "[]"), ["generation_config.json is not a JSON object"]),
    "a key twice": (
        lambda folder: write("config.json", '{"vocab_size": 1,' + (folder / "config.json").read_text()[1:])(folder),
        ["config.json has the key 'vocab_size' twice"],
    ),
    "deep": (write("config.json", f'{{"x": {DEEP}}}'), ["config.json cannot be read", "nested too deeply"]),
    "digits": (write("config.json", f'{{"x": {"9" * 5000}}}'), ["config.json cannot be read", "5000 digits"]),
    "latin-1": (write("config.json", b'{"x": "\xe9"}'), ["config.json cannot be read", "utf-8"]),
    "kind": (tell("config.json", model_type="lama"), ["model_type='lama'", "does not know", "did you mean llama?"]),
    "kind of a list": (tell("config.json", model_type=["llama"]), ["model_type=['llama'], which is not text"]),
    "own code": (
        tell("config.json", model_type="x", auto_map={"AutoConfig": "x.X"}),
        ["model_type=x has code of its own", "set trust_remote_code: true"],
    ),
    "no layers": (tell("config.json", num_hidden_layers=-1), ["num_hidden_layers=-1, which is no size"]),
    "endless layers": (tell("config.json", num_hidden_layers=10**9), ["num_hidden_layers=1000000000, which is no"]),
    "heads": (tell("config.json", hidden_size=33), ["cannot read the config.json", "(33) is not a multiple"]),
    "activation": (tell("config.json", hidden_act="nosuch"), ["cannot make a model", "nosuch"]),
    "part": (tell("config.json", text_config=5), ["text_config=5, which is not an object"]),
    "names": (tell("config.json", architectures={"a": 1}), ["architectures={'a': 1}, which is not a list of names"]),
    "overlap": (header(data_offsets=[0, 128]), ["model.safetensors has a broken header", "invalid offset"]),
    "negative": (header(data_offsets=[-8, 128]), ["model.safetensors has a broken header"]),
    "shape": (header(shape=[-32]), ["model.safetensors has a broken header", "-32"]),
    "dtype": (header(dtype="F16"), ["model.safetensors has a broken header"]),
    "no dtype": (header(dtype="Q9"), ["model.safetensors has a broken header", "unknown variant `Q9`"]),
    "deep header": (
        write("model.safetensors", (len(DEEP) + 6).to_bytes(8, "little") + f'{{"a":{DEEP}}}'.encode()),
        ["not a safetensors file"],
    ),
    "index of numbers": (index({"a": 5}), ["model.safetensors.index.json has no readable weight_map"]),
    "index of a list": (index(["a"]), ["model.safetensors.index.json has no readable weight_map"]),
    "index of NUL": (index({"a": "\0"}), ["lacks 1 of 1 weight files"]),
    "loop of weights": (link("model.safetensors", "model.safetensors"), ["model.safetensors is not a file, or a link"]),
    "loop of config": (link("config.json", "config.json"), ["has no config.json"]),
    "config is a folder": (link("config.json", "."), ["has no config.json"]),
    "other weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "consolidated.safetensors"),
        ["no weights that transformers reads", "but consolidated.safetensors"],
    ),
    "fp8": (
        lambda folder: header(dtype="F8_E4M3", shape=[4, 32])(folder),
        ["it is quantised (model.layers.0.input_layernorm.weight is F8_E4M3)", "name the folder that it was made from"],
    ),
    "awq": (tell("config.json", quantization_config={"quant_method": "awq"}), ["it is quantised (config.json: awq)"]),
    "compressed": (tell("config.json", compression_config={"a": 1}), ["it is quantised (config.json: of an unknown"]),
    "two models": (write("adapter_config.json", "{}"), ["a whole model and an adapter", "remove the one"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_broken_folder_is_refused_by_file_and_fix(world: World, name: str) -> None:
    change, parts = BAD[name]
    change(world.policy)
    refused(world, f"actor.model.path={world.policy}", *parts)
    assert not world.run_dir.exists()


@pytest.mark.parametrize("name", ["no layers", "endless layers", "latin-1", "awq", "deep", "config is a folder"])
def test_a_plan_refuses_the_same_config(world: World, name: str) -> None:
    change, parts = BAD[name]
    change(world.policy)
    with pytest.raises(ConfigError) as caught:
        layout(world.config)
    assert [part for part in [f"actor.model.path={world.policy}", *parts] if part not in str(caught.value)] == []


def test_a_plan_knows_the_heads_that_the_engines_have(world: World) -> None:
    check_planned_engine(world.config)
    model_folder(world.policy, head_dim=16)
    with pytest.raises(ConfigError, match="attention heads of 16 numbers"):
        check_planned_engine(world.config)
    world.set("actor.model.path", "no/such")
    check_planned_engine(world.config)


def test_a_plan_knows_a_kv_cache_without_room_for_a_sample_and_how_much_is_enough(world: World) -> None:
    model_folder(world.policy, num_hidden_layers=10)
    world.set("prompts.max_tokens", 4000)
    with pytest.raises(ConfigError, match=r"kv_cache_gib=0.01 does not hold one sample of 4008 tokens; use ") as caught:
        check_planned_engine(world.config)
    enough = float(str(caught.value).split("; use ")[1].removesuffix(" or more"))
    world.set("rollout.engine.kv_cache_gib", round(enough - 0.01, 2))
    with pytest.raises(ConfigError, match="does not hold one sample"):
        check_planned_engine(world.config)
    world.set("rollout.engine.kv_cache_gib", enough)
    check_planned_engine(world.config)


@pytest.mark.parametrize(
    ("files", "fix"),
    [
        (
            ["m-00001-of-00003.gguf"],
            "in 3 parts: make one of them (llama-gguf-split --merge m-00001-of-00003.gguf m.gguf)",
        ),
        (["m.Q4.gguf", "m.Q8.gguf"], "gguf_file=m.Q4.gguf or another of its 2 GGUF files (m.Q4.gguf, m.Q8.gguf)"),
        (["checkpoint-10/config.json"], "set actor.model.path to its folder checkpoint-10"),
        (["a/config.json", "b/config.json"], "its folder b (or another of its 2 folders with one)"),
        ([], "name the folder that `save_pretrained` wrote"),
    ],
)
def test_a_folder_of_something_else_says_what_to_name(world: World, files: list[str], fix: str) -> None:
    shutil.rmtree(world.policy)
    world.policy.mkdir()
    for name in files:
        (world.policy / name).parent.mkdir(exist_ok=True)
        (world.policy / name).write_bytes(b"GGUF")
    refused(world, f"actor.model.path={world.policy} has no config.json; ", fix)
    with pytest.raises(ConfigError, match="has no config"):
        layout(world.config)


@pytest.mark.parametrize(
    ("path", "fix", "planned"),
    [
        ("/tmp/" + "a" * 300, *2 * ["must have at most 255 bytes in each name and 4000 in all"]),
        ("a/" * 2500, *2 * ["must have at most 255 bytes in each name and 4000 in all"]),
        ("a\0b", *2 * ["must not hold a NUL character"]),
        ("~nosuchuser/model", "does not exist; correct the path", "is not a folder"),
    ],
)
def test_paths_that_cannot_be(world: World, path: str, fix: str, planned: str) -> None:
    world.set("actor.model.path", path)
    message = refused(world, "actor.model.path=", fix)
    assert len(message) < 400
    with pytest.raises(ConfigError, match=planned):
        layout(world.config)


def test_a_folder_has_no_revision(world: World) -> None:
    world.set("actor.model.revision", "v1")
    refused(world, "actor.model.revision=v1 is of a model on the hub, and", "is a folder here; leave it out")


def test_a_folder_that_may_not_be_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != world.policy)
    refused(world, f"actor.model.path={world.policy} may not be read by this user")


def test_a_hub_that_does_not_answer_is_not_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "file_text", lambda *name: ("", "no answer in 5 s"))
    monkeypatch.setattr("roles.model_files.conversion.file_text", hub.file_text)
    world.set("actor.model.path", "nobody/nothing")
    refused(world, "actor.model.path=nobody/nothing", "no answer in 5 s", "hf download NAME --local-dir FOLDER")


def test_models_that_the_hub_does_not_have_are_told_with_the_files_that_are_missing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.checks.role_models.file_text", lambda *name: ("", "HTTP 404"))
    world.set("actor.model.path", "nobody/nothing")
    world.set("reference.model", {"path": "nobody/else"})
    world.set("prompts.train.path", "none.jsonl")
    message = refused(world, "prompts.train.path=none.jsonl does not exist", "actor.model.path=nobody/nothing")
    assert "reference.model.path=nobody/else is no folder here, and the hub does not give it (HTTP 404)" in message


@pytest.mark.parametrize("file, missing", [("config.json", None), ("adapter_config.json", None), (None, "HTTP 404")])
def test_an_adapter_of_the_hub_is_a_model_too(
    file: str | None, missing: str | None, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "orchestrator.checks.role_models.file_text", lambda name, one, _: ("", None if one == file else "HTTP 404")
    )
    world.set("actor.model.path", "me/adapter")
    world.set("prompts.train.path", "none.jsonl")
    told = "actor.model.path=me/adapter is no folder here, and the hub does not give it" in refused(world, "none.jsonl")
    assert told == (missing is not None)


def test_an_adapter_in_the_cache_is_not_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the hub, the file that is missing is the one error."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(world.root / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cached = world.root / "cache/models--me--adapter"
    (cached / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("a" * 40) / "adapter_config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text("a" * 40)
    world.set("actor.model.path", "me/adapter")
    world.set("prompts.train.path", "none.jsonl")
    assert "me/adapter" not in refused(world, "prompts.train.path=none.jsonl does not exist")


def test_numbers_of_a_quantised_file_are_no_weights(world: World) -> None:
    rewrite(
        world.policy, lambda tensors: tensors.update({"model.layers.0.mlp.up_proj.qweight": np.zeros((4, 4), np.int32)})
    )
    refused(world, "it is quantised (model.layers.0.mlp.up_proj.qweight is I32)")


# Adapters


def adapter(world: World, base: str, **keys: Any) -> Path:
    """A LoRA of rank 2 on one layer of the policy."""
    folder = world.root / "adapter"
    folder.mkdir()
    said = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(said | {"target_modules": ["up_proj"]} | keys))
    tensors = {}
    for layer in range(2):
        prefix = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        tensors |= {f"{prefix}.lora_A.weight": np.ones((2, 32), np.float32)}
        tensors |= {f"{prefix}.lora_B.weight": np.full((32, 2), 0.5, np.float32)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    world.set("actor.model.path", str(folder))
    return folder


def test_an_adapter_is_merged_into_its_base(world: World) -> None:
    adapter(world, str(world.policy))
    check("train", world)
    (made,) = (world.root / "cache").iterdir()
    name = "model.layers.0.mlp.up_proj.weight"
    before, after = (load_file(folder / "model.safetensors") for folder in (world.policy, made))
    np.testing.assert_allclose(after[name], before[name] + 2 * 2 * 0.5, rtol=1e-6)  # alpha / r · B A
    np.testing.assert_array_equal(after["lm_head.weight"], before["lm_head.weight"])
    assert layout(world.config).sizes["actor"].hidden == 32


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"base_model_name_or_path": None}, ["names no base_model_name_or_path"]),
        ({"base_model_name_or_path": "/no/such"}, ["an adapter of /no/such", "write there where the base model is"]),
        ({"peft_type": "PROMPT_TUNING"}, ["of kind 'PROMPT_TUNING'", "cannot be merged", "use the base model"]),
        ({"target_modules": ["nosuch"]}, ["does not fit its base model", "merge it yourself"]),
        ({"target_modules": ["down_proj"]}, ["does not fit its base model"]),
    ],
)
def test_an_adapter_that_cannot_be_merged(world: World, keys: dict[str, Any], parts: list[str]) -> None:
    adapter(world, str(world.policy), **keys)
    refused(world, f"actor.model.path={world.root / 'adapter'}", *parts)


def test_an_adapter_of_a_quantised_base_or_of_itself(world: World) -> None:
    folder = adapter(world, str(world.policy))
    say(world.policy, quantization_config={"quant_method": "bitsandbytes"})
    refused(world, "it is quantised (config.json: bitsandbytes)")
    tell("adapter_config.json", base_model_name_or_path=str(folder))(folder)
    refused(world, "names itself as its base model")
    (folder / "adapter_model.safetensors").unlink()
    refused(world, "an adapter without adapter_model.safetensors")


# Templates behind the text bridge


def bridge(world: World, template: str | None, chats: list[Any]) -> None:
    folder = model_folder(world.root / "reward", reward=True)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    (world.policy / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} {% endfor %}")
    world.prompts.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    world.set("reward", {"type": "model", "model": {"path": str(folder)}, "text_bridge": True})


CHAT = [{"role": "user", "content": "a"}]
LONG = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_template_that_the_bridge_cannot_use(world: World, command: str) -> None:
    bridge(world, None, [CHAT])
    part = "heldout" if command == "evaluate" else "train"
    refused(world, "reward.model.path=", f"has no chat template to read the chats of prompts.{part}", command=command)
    bridge(world, "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}x", [CHAT, CHAT, LONG])
    refused(
        world, "reward.model.path=", f"the chat of prompts.{part}.path=", "line 3: row 2 (too long)", command=command
    )
    bridge(world, "{% for m in messages %}{{ m.content }}{% endfor %}", [CHAT, LONG])
    check(command, world)


@pytest.mark.parametrize("given", [[{"name": "d"}], '[{"name": "d"}]'])
def test_a_template_behind_the_bridge_writes_the_tools(world: World, given: Any) -> None:
    plain = "{% for m in messages %}{{ m.content }} {% endfor %}"
    for template in (plain, "{% for tool in tools or [] %}{{ raise_exception(tool.name) }}{% endfor %}" + plain):
        bridge(world, template, [CHAT])
        (world.policy / "chat_template.jinja").write_text("{% for t in tools or [] %}{{ t.name }} {% endfor %}" + plain)
        rows = [{"messages": CHAT, "functions": None}, {"messages": CHAT, "functions": given}]
        world.prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        world.set("prompts.tools", "functions")
        said = "does not write the tools of prompts.train" if template == plain else "line 2: row 1 (d)"
        refused(world, "reward.model.path=", "its chat template", said)
    world.prompts.write_text(json.dumps(rows[0]) + "\n")
    check("train", world)
