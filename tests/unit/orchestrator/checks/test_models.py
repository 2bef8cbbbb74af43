"""A model folder, or a tokenizer, that does not serve is refused by name before anything starts."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
)

from tests.unit.orchestrator.checks.door import WORDS, World, check, model_folder, refused, rewrite, say


@pytest.mark.parametrize("key", ["actor.model", "reference.model", "critic.model", "reward.model"])
def test_a_missing_model_folder(world: World, key: str) -> None:
    world.set(f"{key}.path", "no/such/folder")
    refused(world, f"{key}.path=no/such/folder does not exist", "correct the path")


def test_a_reward_model_that_is_still_to_be_trained(world: World) -> None:
    world.set("reward.model.path", str(world.root / "trained"))
    refused(world, "reward.model.path=", "does not exist", "train it first: tetrarch reward CONFIG")
    check("reward", world)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("config.json", ["has no config.json", "save_pretrained"]),
        ("tokenizer.json", ["has no tokenizer"]),
        ("model.safetensors", ["has no weights"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "reward"])
def test_a_folder_without_one_of_its_files(world: World, name: str, parts: list[str], command: str) -> None:
    (world.policy / name).unlink()
    message = refused(world, *parts, command=command)
    assert f"model.path={world.policy}" in message


def test_weights_that_are_cut_off_or_a_pointer(world: World) -> None:
    weights = world.policy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    refused(world, "actor.model.path=", f"{len(whole) - 4} bytes", f"says {len(whole)}", "fetch it anew")
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(world, "not a safetensors file", "Git LFS")


def test_a_missing_shard(world: World) -> None:
    (world.policy / "model.safetensors").rename(world.policy / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (world.policy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(world, "lacks 1 of 2 weight files, part-2.safetensors first")
    shutil.copy(world.policy / "part-1.safetensors", world.policy / "part-2.safetensors")
    check("train", world)


def test_broken_small_files(world: World) -> None:
    (world.policy / "config.json").write_text("{")
    refused(world, "actor.model", "config.json cannot be read")
    (world.policy / "config.json").write_text("{}")
    refused(world, "actor.model.path=", "names no model_type")
    (world.policy / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    refused(world, "encoder-decoder", "decoder-only")


def test_a_gguf_file_that_is_not_there(world: World) -> None:
    folder = world.root / "gguf"
    folder.mkdir()
    world.set("actor.model.path", str(folder))
    world.set("actor.model.gguf_file", "model.q4.gguf")
    refused(world, "actor.model.gguf_file=model.q4.gguf is not in", "no GGUF file at all")
    (folder / "Model.Q4_1.gguf").write_bytes(b"<html>")
    refused(world, "did you mean Model.Q4_1.gguf?")
    world.set("actor.model.gguf_file", "Model.Q4_1.gguf")
    refused(world, "actor.model.gguf_file=Model.Q4_1.gguf is not a GGUF file")
    world.set("actor.model.gguf_file", None)
    refused(world, "has no config.json", "set actor.model.gguf_file=Model.Q4_1.gguf")


def test_more_layers_than_there_are(world: World) -> None:
    world.set("actor.model.layers", 3)
    refused(world, "actor.model.layers=3", "has 2")


def test_a_reward_model_that_is_none(world: World) -> None:
    world.set("reward.model.path", str(world.policy))
    refused(world, "reward.model.path=", "LlamaForCausalLM, not a reward model", "tetrarch reward CONFIG")


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_with_several_labels_is_no_reward_model(world: World, labels: int) -> None:
    """The head's rows count, whatever config.json says: transformers leaves out that there are two."""
    rewrite(world.reward, lambda tensors: tensors.update({"score.weight": np.zeros((labels, 32), np.float32)}))
    refused(world, f"reward.model.path={world.reward}", f"has {labels} labels", "num_labels=1")


@pytest.mark.parametrize("labels", [None, {"0": "LABEL_0", "1": "LABEL_1"}])
@pytest.mark.parametrize("head", ["score", "value_head", "v_head.summary"])
def test_reward_models_of_other_programs_pass(world: World, head: str, labels: dict[str, str] | None) -> None:
    """One row is one label; OpenRLHF's architecture has a name that transformers does not know."""
    say(world.reward, architectures=["RewardModel"], id2label=labels, mean=0.1, std=2.0)

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{head}.weight"] = tensors.pop("score.weight")
        tensors[f"{head}.bias"] = np.zeros(1, np.float32)

    rewrite(world.reward, change)
    check("train", world)


def test_a_normalisation_that_is_none(world: World) -> None:
    say(world.reward, mean=0.5, std=0)
    refused(world, f"reward.model.path={world.reward}", "mean=0.5, std=0", "std above 0")


ROLES = [
    ("actor.model", "train"),
    ("reference.model", "train"),
    ("critic.model", "train"),
    ("reward.model", "train"),
    ("actor.model", "evaluate"),
    ("actor.model", "reward"),
    ("reward_training.model", "reward"),
]


@pytest.mark.parametrize(("key", "command"), ROLES)
def test_weights_that_are_missing_or_too_many_are_named(world: World, key: str, command: str) -> None:
    folder = model_folder(world.root / "other", reward=key == "reward.model")
    world.set(key, {"path": str(folder)})
    check(command, world)
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.extra.bias": np.zeros(3, np.float32)}))
    refused(world, f"{key}.path={folder}", "has not: model.layers.0.extra.bias", command=command)
    rewrite(folder, lambda tensors: tensors.pop("model.layers.0.extra.bias"))
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(world, f"{key}.path={folder}", "lacks weights", "model.layers.1.mlp.up_proj.weight", command=command)


def test_a_head_is_weights_too_many_of_a_policy_alone(world: World) -> None:
    rewrite(world.policy, lambda tensors: tensors.update({"score.bias": np.zeros(1, np.float32)}))
    refused(world, "actor.model.path=", "has not: score.bias")
    rewrite(world.policy, lambda tensors: tensors.pop("score.bias"))
    world.set("critic.initialise_from", "policy")
    check("train", world)


def test_a_critic_from_a_policy_needs_an_architecture_with_a_classifier(world: World) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    GraniteForCausalLM(GraniteConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(world.policy)
    world.set("critic.initialise_from", "policy")
    said = refused(world, "actor.model.path=", "cannot make a model ForSequenceClassification", "(granite): it has no")
    assert said.endswith("or train without a critic (such as ppo.advantage.type: rloo)")
    del world.data["critic"]
    world.set("ppo.advantage", {"type": "rloo"})
    world.set("rollout.responses_per_prompt", 2)
    check("train", world)


def test_quantised_weights(world: World) -> None:
    say(world.policy, quantization_config={"quant_method": "fp8"})
    refused(world, "actor.model.path=", "is quantised")


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"hidden_size": "big"}, {"num_attention_heads": "four"}]
)
def test_a_config_of_nonsense(world: World, change: dict[str, Any]) -> None:
    say(world.policy, **change)
    (key, value), *_ = change.items()
    refused(world, f"actor.model.path={world.policy}: config.json says {key}={value!r}, which is no size")


@pytest.mark.parametrize(("head", "command"), [(16, "train"), (16, "evaluate"), (16, "reward"), (48, "train")])
def test_heads_that_vllm_on_cpu_has_not(world: World, head: int, command: str) -> None:
    model_folder(world.policy, head_dim=head)
    world.set("reward_training.model.path", str(model_folder(world.root / "backbone")))
    refused(world, "actor.model.path=", f"attention heads of {head} numbers", "32, 64, 80", command=command)


def test_a_reward_model_to_start_from_keeps_its_pooling(world: World) -> None:
    """Its head was trained for it. A new head has none yet."""
    say(world.reward, score_pooling="mean")
    for pooling in (None, "last", "mean"):
        world.set("reward_training.pooling", pooling)
        check("reward", world)
    world.set("reward_training.model.path", str(world.reward))
    check("reward", world)
    world.set("reward_training.pooling", None)
    check("reward", world)
    world.set("reward_training.pooling", "last")
    told = f"reward_training.pooling=last, but the head in reward_training.model.path={world.reward} is read as `mean`"
    refused(world, told, "config.json", "leave it out", command="reward")
    say(world.reward, score_pooling="last")
    check("reward", world)


MOVED = ["<pad>", "<eos>", "<unk>", *"bacdefgh"]


@pytest.mark.parametrize("key", ["reward.model", "critic.model", "reference.model"])
def test_a_model_with_another_tokenizer(world: World, key: str) -> None:
    other = model_folder(world.root / "other", reward=key == "reward.model", words=MOVED)
    world.set(f"{key}.path", str(other))
    message = refused(world, f"{key}.path={other} has another tokenizer than actor.model.path=", "'a' is 3 and 4")
    assert ("text_bridge: true" in message) == (key == "reward.model")


def test_a_text_bridge_lets_the_reward_model_read_otherwise(world: World) -> None:
    world.set("reward.model.path", str(model_folder(world.root / "other", reward=True, words=MOVED)))
    world.set("reward.text_bridge", True)
    refused(world, "critic.model is null", "another tokenizer", "set critic.initialise_from: policy")
    world.set("critic.initialise_from", "policy")
    check("train", world)


def test_normalised_values_need_a_new_head(world: World) -> None:
    world.set("critic.model.path", str(model_folder(world.root / "critic", reward=True)))
    world.set("ppo.value.normalise", True)
    refused(world, "ppo.value.normalise=true", "critic.model", "speaks in plain units")
    world.set("critic.model.path", str(world.policy))
    check("train", world)


def test_a_tokenizer_without_eos(world: World) -> None:
    file = world.policy / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))
    refused(world, "actor.model.path=", "no EOS token", "eos_token")


def test_a_tokenizer_whose_only_special_token_is_eos(world: World) -> None:
    """As GPT-2's: nothing reads padding."""
    file = world.policy / "tokenizer_config.json"
    told = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("pad_token", "unk_token")}
    tokens = json.loads((world.policy / "tokenizer.json").read_text())
    tokens["added_tokens"] = [token for token in tokens["added_tokens"] if token["content"] == "<eos>"]
    (world.policy / "tokenizer.json").write_text(json.dumps(tokens))
    for pad in ({}, {"pad_token": "<eos>"}):
        file.write_text(json.dumps({**told, **pad}))
        world.set("reward", {"type": "function", "path": str(world.function)})
        world.set("critic.initialise_from", "policy")
        check("train", world)


def test_a_tokenizer_larger_than_the_embedding(world: World) -> None:
    model_folder(world.policy, vocab_size=5)
    refused(world, "actor.model.path=", "11 tokens", "only 5 embeddings", "resize")


def test_a_token_that_ends_responses_is_one_of_the_model(world: World) -> None:
    last = len(WORDS) - 1
    world.set("rollout.stop_token_ids", [last])
    check("train", world)
    world.set("rollout.stop_token_ids", [3, last + 1])
    refused(world, f"rollout.stop_token_ids: {last + 1} is no token of actor.model", f"0 to {last}; correct it")
