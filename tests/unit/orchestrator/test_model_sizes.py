"""Sizes without weights: exact counts, as their makers publish them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from orchestrator.config import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.loading import load_config
from orchestrator.meta_models import size_of
from orchestrator.model_sizes import adapters, check_adapters, model_size
from roles.config import ModelConfig
from roles.lora import adapt

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "codellama/CodeLlama-34b-hf": 33_743_970_304,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen3-32B": 32_762_123_264,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_known_models(tmp_path: Path, name: str, parameters: int) -> None:
    size = model_size(ModelConfig(path=name), "actor.model", tmp_path)
    assert size.parameters == parameters
    assert size.layers * size.layer + 2 * size.embedding + size.hidden == parameters


@pytest.mark.parametrize("tied", [True, False])
def test_against_models_that_are_really_built(tied: bool) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, tie_word_embeddings=tied, num_labels=1, **sizes)
    policy, critic = LlamaForCausalLM(config), LlamaForSequenceClassification(config)
    assert size_of(config).parameters == sum(p.numel() for p in policy.parameters())
    assert size_of(config, value_head=True).parameters == sum(p.numel() for p in critic.parameters())
    assert size_of(config).layer == sum(p.numel() for p in policy.model.layers[0].parameters())
    assert (size_of(config).kv_width, size_of(config, value_head=True).vocabulary) == (32, 0)


def lora_config(tmp_path: Path, **lora: object) -> RunConfig:
    """The tiny run on a small Llama, with adapters on actor and critic."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=50, num_key_value_heads=2, **sizes)
    config.save_pretrained(tmp_path)
    model = f"model={{path: {tmp_path}}}"
    both = [f"{role}.lora={json.dumps(lora)}" for role in ("actor", "critic")]
    return load_config(ROOT / "configs/tiny.yaml", [f"actor.{model}", f"critic.{model}", f"reward.{model}", *both])


def test_adapters_are_counted_by_hand(tmp_path: Path) -> None:
    config = lora_config(tmp_path, rank=2, targets=["q_proj", "down_proj"])
    beside = 3 * 2 * ((64 + 64) + (96 + 64))
    assert adapters(config, "actor") == beside
    assert adapters(config, "critic") == beside + 64, "and the value head"
    made = LlamaForCausalLM(LlamaConfig.from_pretrained(tmp_path))
    adapt(made, config.actor.lora)
    assert beside == sum(p.numel() for p in made.parameters() if p.requires_grad)
    plain = config.actor.model_copy(update={"lora": None})
    assert adapters(config.model_copy(update={"actor": plain}), "actor") is None


def test_a_target_that_is_no_layer_is_told_before_anything_starts(tmp_path: Path) -> None:
    config = lora_config(tmp_path, targets=["q_pro"])
    with pytest.raises(ConfigError, match=r"^actor\.lora\.targets: q_pro is no linear layer of this LlamaForCausalLM"):
        check_adapters(config)


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"critic\.model\.path=me/mine is not a folder, .* or use one of .*Qwen/Qwen3-32B"
    ):
        model_size(ModelConfig(path="me/mine"), "critic.model", tmp_path)
