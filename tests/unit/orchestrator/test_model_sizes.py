"""Sizes without weights: exact counts, as their makers publish them."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from orchestrator.errors import ConfigError
from orchestrator.model_sizes import model_size, size_of
from roles.config import ModelConfig

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


def test_an_unknown_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"critic\.model\.path=me/mine is not a folder, .* or use one of .*Qwen/Qwen3-32B"
    ):
        model_size(ModelConfig(path="me/mine"), "critic.model", tmp_path)
