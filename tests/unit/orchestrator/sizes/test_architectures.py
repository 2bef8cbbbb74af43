"""Sizes from config.json alone: equal, number by number, to the models that transformers makes."""

from __future__ import annotations

import json
import random
import zlib
from typing import Any

import pytest
from transformers import AutoConfig

from orchestrator.sizes.architectures import decoder_of
from orchestrator.sizes.families import FAMILIES
from orchestrator.sizes.meta_models import adapters_of, size_of
from orchestrator.sizes.model_sources import known_shapes
from roles.config.models import LoraConfig

BOTH = [True, False]
BIAS = {"attention_bias": BOTH}
TIED = {"tie_word_embeddings": BOTH}
HEAD = {"head_dim": [8, 12]}
EXPERTS = {"num_experts_per_tok": [1, 2], "moe_intermediate_size": [8, 20]}
SPARSE = {"num_experts": [4, 6], "decoder_sparse_step": [1, 2], "mlp_only_layers": [[], [1]], **EXPERTS}
LATENT = {
    "q_lora_rank": [None, 20],
    "kv_lora_rank": [12, 16],
    "qk_rope_head_dim": [4, 8],
    "qk_nope_head_dim": [8, 12],
    "v_head_dim": [8, 14],
    "n_routed_experts": [4, 8],
    "n_shared_experts": [1, 2],
    "first_k_dense_replace": [0, 1, 2],
    "n_group": [2],
    "topk_group": [1],
    **EXPERTS,
}
WHOLE_HEADS = {"num_key_value_heads": [4]}
"""Families without grouped heads."""

CHOICES: dict[str, dict[str, list[Any]]] = {
    "llama": {**BIAS, **TIED, "mlp_bias": BOTH, "head_dim": [None, 8]},
    "mistral": {**TIED, "head_dim": [None, 8]},
    "ministral": {**TIED, **HEAD},
    "mixtral": {**TIED, "num_local_experts": [4, 6], "num_experts_per_tok": [1, 2]},
    "qwen2": TIED,
    "qwen2_moe": {**TIED, "qkv_bias": BOTH, "shared_expert_intermediate_size": [12, 28], **SPARSE},
    "qwen3": {**TIED, **BIAS, **HEAD},
    "qwen3_moe": {**TIED, **BIAS, **HEAD, **SPARSE},
    "gemma": {**TIED, **BIAS, **HEAD},
    "gemma2": {**TIED, **BIAS, **HEAD, "final_logit_softcapping": [None, 30.0]},
    "gemma3_text": {**TIED, **BIAS, **HEAD, "final_logit_softcapping": [None, 30.0]},
    "phi": TIED,
    "phi3": TIED,
    "gpt2": {**TIED, "n_inner": [None, 60], "n_positions": [30, 40]},
    "gpt_neox": {**TIED, **BIAS, **WHOLE_HEADS},
    "opt": {
        "do_layer_norm_before": BOTH,
        "word_embed_proj_dim": [24, 48],
        "max_position_embeddings": [30],
        **WHOLE_HEADS,
    },
    "olmo": {**TIED, **BIAS},
    "olmo2": {**TIED, **BIAS},
    "olmo3": {**TIED, **BIAS},
    "olmoe": {**TIED, **BIAS, "num_experts": [4, 6], "num_experts_per_tok": [1, 2]},
    "granite": {**TIED, **BIAS, "mlp_bias": BOTH, "logits_scaling": [1.0, 8.0]},
    "granitemoe": {**TIED, **BIAS, "num_local_experts": [4], "num_experts_per_tok": [2], "logits_scaling": [1.0, 8.0]},
    "cohere": {**TIED, **BIAS, "use_qk_norm": BOTH, "logit_scale": [1.0, 0.25]},
    "cohere2": {**TIED, **BIAS, "logit_scale": [1.0, 0.25]},
    "smollm3": {**TIED, **BIAS, "mlp_bias": BOTH},
    "stablelm": {**TIED, "use_qkv_bias": BOTH, "qk_layernorm": BOTH},
    "starcoder2": {**TIED, "use_bias": BOTH},
    "glm": {**TIED, **BIAS, **HEAD},
    "glm4": {**TIED, **BIAS, **HEAD},
    "deepseek_v2": {**TIED, **BIAS, "mlp_bias": BOTH, **LATENT, **WHOLE_HEADS},
    "deepseek_v3": {**TIED, **BIAS, **LATENT, **WHOLE_HEADS},
    "gpt_oss": {**TIED, **BIAS, **HEAD, "num_local_experts": [4, 6], "num_experts_per_tok": [1, 2]},
}
THEIR_NAMES = {"gpt2": FAMILIES["gpt2"].keys, "opt": {"intermediate_size": "ffn_dim"}}
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def drawn(family: str, seed: int) -> dict[str, Any]:
    """A small config.json with random shapes and options."""
    draw = random.Random(zlib.crc32(f"{family} {seed}".encode()))
    sizes = {
        "hidden_size": 48,
        "intermediate_size": draw.choice([60, 80]),
        "num_hidden_layers": draw.choice([3, 4]),
        "num_attention_heads": 4,
        "num_key_value_heads": draw.choice([1, 2, 4]),
        "vocab_size": draw.choice([101, 130]),
    }
    sizes |= {key: draw.choice(values) for key, values in CHOICES[family].items()}
    names = THEIR_NAMES.get(family, {})
    return {names.get(key, key): value for key, value in sizes.items()}


def test_every_family_is_compared() -> None:
    assert CHOICES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_random_shapes_against_models_that_transformers_makes(family: str) -> None:
    for seed in range(3):
        said = drawn(family, seed)
        config = AutoConfig.for_model(family, **said, **IDS)
        built = [size_of(config, value_head=value_head) for value_head in BOTH]
        for file in ({"model_type": family, **said}, json.loads(config.to_json_string()), config.to_dict()):
            decoder = decoder_of(file)
            assert decoder is not None
            assert [decoder.size(value_head=value_head) for value_head in BOTH] == built, said


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.2-3B",
        "Qwen/Qwen2.5-7B",
        "Qwen/Qwen3-30B-A3B",
        "mistralai/Mixtral-8x7B-v0.1",
        "google/gemma-2-9b",
        "microsoft/phi-4",
        "deepseek-ai/DeepSeek-V2-Lite",
        "openai/gpt-oss-20b",
        "gpt2-xl",
        "facebook/opt-350m",
    ],
)
def test_published_shapes_against_models_that_transformers_makes(name: str) -> None:
    said = dict(known_shapes()[name])
    decoder = decoder_of(said)
    assert decoder is not None
    assert decoder.size() == size_of(AutoConfig.for_model(said.pop("model_type"), **said))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_out_is_what_transformers_takes(family: str) -> None:
    """Without the options, whose defaults differ from family to family."""
    said = {key: value for key, value in drawn(family, 9).items() if key not in FAMILIES[family].defaults}
    said = {key: value for key, value in said.items() if key not in FAMILIES[family].holds | TIED}
    decoder = decoder_of({"model_type": family, **said})
    assert decoder is not None
    assert decoder.size() == size_of(AutoConfig.for_model(family, **said, **IDS)), said


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.linear])
def test_adapters_are_those_that_peft_would_make(family: str) -> None:
    said = drawn(family, 1)
    config, decoder = AutoConfig.for_model(family, **said, **IDS), decoder_of({"model_type": family, **said})
    assert decoder is not None
    (first, _), *_ = decoder.layers
    queries, last = first.linear[0][0], first.linear[-1][0].rpartition(".")[2]
    for targets in ("all-linear", (queries,), (last, queries, queries.rpartition(".")[2])):
        lora = LoraConfig(rank=3, targets=targets)
        named = ("all-linear",) if targets == "all-linear" else targets
        assert decoder.adapters(3, named) == adapters_of(config, lora), targets


def test_a_target_that_is_no_layer_is_left_to_transformers() -> None:
    decoder, gpt2 = decoder_of(known_shapes()["Qwen/Qwen3-8B"]), decoder_of(known_shapes()["gpt2"])
    assert decoder is not None and gpt2 is not None
    assert decoder.adapters(8, ["q_proj"]) == 36 * 8 * (4096 + 4096)
    assert decoder.adapters(8, ["q_pro"]) is decoder.adapters(8, ["q_proj", "layers.0.mlp.up_proj"]) is None
    assert gpt2.adapters(8, ["c_attn"]) is None, "its matrices are stored in another way"


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba", "hidden_size": 8},
        {"model_type": "llama", "hidden_size": 64},
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}},
        {**drawn("stablelm", 0), "model_type": "stablelm", "use_parallel_residual": True},
        {},
    ],
)
def test_what_the_table_does_not_know_is_left_to_transformers(config: dict[str, Any]) -> None:
    assert decoder_of(config) is None
