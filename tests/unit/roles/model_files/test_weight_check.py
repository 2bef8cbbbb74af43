"""Weights that are not those of a folder's config.json are refused by name; sound folders are not."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from roles.errors import ModelError
from roles.model_files import tied_weights
from roles.model_files.weight_check import Use, check_weights
from roles.model_files.weight_files import stored_weights
from tests.integration import architectures

ALL = sorted({**architectures.DENSE, **architectures.MIXTURES})
NO_CLASSIFIER = {
    *("Apertus", "Cohere", "Cohere2", "Dots1", "Ernie4_5", "Ernie4_5_Moe", "FlexOlmo", "Glm4Moe", "Granite"),
    *("GraniteMoe", "GraniteMoeShared", "Olmoe"),
}
"""Architectures of which transformers has no sequence classifier."""
CLASSIFIERS = sorted(set(ALL) - NO_CLASSIFIER)

USES: tuple[Use, ...] = ("policy", "value")


def rewrite(folder: Path, change: Any) -> None:
    """The folder's weights after `change` (name → tensor, in place)."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Language models, made when first asked for."""
    root = tmp_path_factory.mktemp("models")

    class Made(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(architectures.config(name)).save_pretrained(root / name)
            self[name] = root / name
            return self[name]

    return Made()


@pytest.mark.parametrize("name", ALL)
def test_what_save_pretrained_writes_is_whole(folders: dict[str, Path], name: str) -> None:
    """As a policy, and as what a critic or a reward model in training starts from."""
    check_weights(folders[name], "policy")
    if name in NO_CLASSIFIER:
        with pytest.raises(ModelError, match="transformers cannot make a model ForSequenceClassification"):
            check_weights(folders[name], "value")
        return
    check_weights(folders[name], "value")
    with pytest.raises(ModelError, match=r"lacks weights of a reward model: score\.weight; .*tetrarch reward"):
        check_weights(folders[name], "reward")


@pytest.mark.parametrize("name", CLASSIFIERS[::4])
def test_a_classifier_is_whole_as_a_reward_model_and_a_critic(tmp_path: Path, name: str) -> None:
    config = architectures.config(name)
    config.num_labels = 1
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    for use in ("reward", "value"):
        check_weights(tmp_path, use)
    with pytest.raises(ModelError, match=r"has weights that a causal language model of its config.json has not: score"):
        check_weights(tmp_path, "policy")


@pytest.mark.parametrize("name", ALL)
def test_a_lost_tensor_and_one_too_many_are_named(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    stored = sorted(stored_weights(folders[name]))
    body = [tensor for tensor in stored if not tensor.startswith(("lm_head", "embed_out"))]
    lost = random.Random(name).choice(body)
    extra = f"{next(tensor for tensor in body if '.1.' in tensor).rpartition('.')[0]}.extra"
    copy = copied(folders[name], tmp_path)

    def change(tensors: dict[str, Any]) -> None:
        del tensors[lost]
        tensors[extra] = torch.zeros(1)

    rewrite(copy, change)
    for use in USES[: 1 if name in NO_CLASSIFIER else 2]:
        with pytest.raises(ModelError) as caught:
            check_weights(copy, use)
        missing, unexpected, _ = str(caught.value).split("; ")
        assert re.search(rf"lacks weights of a [a-z ]+: (lm_head.weight, )?{re.escape(lost)}$", missing), missing
        assert re.search(rf"has weights that a [a-z ]+ of its config.json has not: .*{re.escape(extra)}$", unexpected)


def copied(folder: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 100}, r"other shapes than its .*embed_tokens.weight \(\d+, 64\), not \(100, 64"),
        ({"num_hidden_layers": 3}, r"lacks weights of a causal language model: model.layers.2.*and 6 more"),
        ({"num_hidden_layers": 1}, r"weights that a causal language model of its .* has not: model.layers.1"),
        ({"attention_bias": True}, r"lacks weights of a causal language model: model.layers.0.self_attn.k_proj.bias"),
        ({"num_attention_heads": "four"}, r"transformers cannot read the config\.json \(.*num_attention_heads.*four"),
        ({"num_attention_heads": 0}, r"transformers cannot .* config\.json"),
        ({"hidden_size": "big"}, r"transformers cannot read the config\.json \(.*hidden_size.*big"),
    ],
)
def test_a_config_of_another_model(
    folders: dict[str, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    copy = copied(folders["Llama"], tmp_path)
    said = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(said | change))
    with pytest.raises(ModelError, match=message):
        check_weights(copy, "policy")


@pytest.mark.parametrize("name", ["Qwen3Moe", "Mixtral"])
def test_an_expert_too_many_and_one_of_another_size(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    part = next(tensor for tensor in sorted(stored_weights(folders[name])) if ".1." in tensor and "experts.3" in tensor)
    copy = copied(folders[name], tmp_path)
    rewrite(copy, lambda tensors: tensors.update({part.replace("experts.3", "experts.4"): tensors[part].clone()}))
    with pytest.raises(ModelError, match=r"layers\.1\..*experts"):
        check_weights(copy, "policy")
    copy = copied(folders[name], tmp_path)
    rewrite(copy, lambda tensors: tensors.update({part: tensors[part][:-1]}))
    with pytest.raises(ModelError, match=r"layers\.1\..*experts"):
        check_weights(copy, "policy")


def test_names_of_older_folders_are_no_false_alarm(folders: dict[str, Path], tmp_path: Path) -> None:
    """Buffers that were once saved, and tensors without the prefix of the base model."""
    llama, gpt2 = copied(folders["Llama"], tmp_path / "llama"), copied(folders["GPT2"], tmp_path / "gpt2")
    frequencies = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    rewrite(llama, lambda tensors: tensors.update({frequencies.format(i): torch.ones(16) for i in (0, 1)}))
    check_weights(llama, "policy")
    check_weights(llama, "value")

    def older(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors |= {f"h.{i}.attn.bias": torch.ones(1, 1, 8, 8) for i in (0, 1)}
        tensors |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in (0, 1)}

    rewrite(gpt2, older)
    check_weights(gpt2, "policy")
    check_weights(gpt2, "value")


def test_a_tied_head_may_be_there_or_not_or_alone(tmp_path: Path) -> None:
    config = architectures.config("Qwen2")
    assert config.tie_word_embeddings
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in stored_weights(tmp_path)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    check_weights(tmp_path, "policy")
    rewrite(tmp_path, lambda t: t.pop("model.embed_tokens.weight"))
    check_weights(tmp_path, "policy")


TIED = [
    ("Qwen2", "lm_head.weight", "model.embed_tokens.weight"),
    ("GPTNeoX, tied head", "embed_out.weight", "gpt_neox.embed_in.weight"),
]


@pytest.mark.parametrize(("name", "head", "embedding"), TIED)
@pytest.mark.parametrize("ending", ["safetensors", "bin", "old bin"])
def test_a_stored_head_that_is_not_the_embedding_it_is_tied_to_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, head: str, embedding: str, ending: str
) -> None:
    """A head of other numbers in the last row alone, read in several slices, and an equal one."""
    AutoModelForCausalLM.from_config(architectures.config(name)).save_pretrained(tmp_path)
    monkeypatch.setattr(tied_weights, "SLICE", 128 * 5)

    def store(row: int, numbers: torch.dtype = torch.float32) -> None:
        def change(tensors: dict[str, Any]) -> None:
            tensors[head] = tensors[embedding].clone().to(numbers)
            tensors[head][row] += 1 if row else 0

        (tmp_path / "model.safetensors").write_bytes(whole)
        rewrite(tmp_path, change)
        if ending != "safetensors":
            tensors, file = load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin"
            torch.save(tensors, file, _use_new_zipfile_serialization=ending == "bin")
            (tmp_path / "model.safetensors").unlink()

    whole = (tmp_path / "model.safetensors").read_bytes()
    store(0)
    check_weights(tmp_path, "policy")
    for numbers in (torch.float32, torch.bfloat16):
        store(-1, numbers)
        with pytest.raises(ModelError) as caught:
            check_weights(tmp_path, "policy")
        assert str(caught.value) == (
            f"config.json says tie_word_embeddings: true, but {head} and {embedding} hold different numbers, "
            "and programs differ in which they read; set tie_word_embeddings: false in config.json"
        )
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said | {"tie_word_embeddings": False}))
    check_weights(tmp_path, "policy")


def test_a_head_beside_an_embedding_without_the_prefix_is_compared_with_it(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    gpt2 = copied(folders["GPT2"], tmp_path)

    def older(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["lm_head.weight"] = tensors["wte.weight"] + 1

    rewrite(gpt2, older)
    with pytest.raises(ModelError, match=r"lm_head\.weight and wte\.weight hold different numbers"):
        check_weights(gpt2, "policy")


def test_a_backbone_without_a_head_is_no_policy_but_a_critic(tmp_path: Path) -> None:
    """As AutoModel.save_pretrained writes it: without prefix and language head."""
    AutoModel.from_config(architectures.config("Llama")).save_pretrained(tmp_path)
    check_weights(tmp_path, "value")
    with pytest.raises(ModelError, match=r"lacks weights of a causal language model: lm_head\.weight;"):
        check_weights(tmp_path, "policy")


def test_two_sets_of_weights_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = copied(folders["Llama"], tmp_path)
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    check_weights(copy, "policy")
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(ModelError, match="two sets of weights"):
        check_weights(copy, "policy")
    (copy / "model.safetensors").unlink()
    index.write_text("{}")
    with pytest.raises(ModelError, match=r"index\.json has no readable weight_map"):
        check_weights(copy, "policy")


def test_weights_of_pytorch_are_read_by_name_too(folders: dict[str, Path], tmp_path: Path) -> None:
    copy = copied(folders["Llama"], tmp_path)
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    check_weights(copy, "policy")
    torch.save({**tensors, "score.bias": torch.zeros(1)}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"has not: score\.bias"):
        check_weights(copy, "policy")
    (copy / "pytorch_model.bin").write_bytes(b"<html>")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is not a file of PyTorch weights"):
        check_weights(copy, "policy")


def test_the_check_leaves_the_configuration_of_the_caller_alone(folders: dict[str, Path]) -> None:
    before = AutoConfig.from_pretrained(folders["Llama"]).to_dict()
    check_weights(folders["Llama"], "value")
    assert AutoConfig.from_pretrained(folders["Llama"]).to_dict() == before
