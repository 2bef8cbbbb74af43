"""Tiny random causal language models of many architectures, each as a Hugging Face folder.

Their weights are large enough that their distributions are far from uniform, and no norm is 1 or bias 0: whatever is
wrong in a weight shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.integration.tiny_model import EOS, PAD, VOCABULARY, save_tokenizer

SPECIAL = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": EOS}
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256, **SPECIAL}
WIDE = {**SIZES, "hidden_size": 128, "intermediate_size": 128}
"""Heads of 32."""
GROUPED = {**WIDE, "num_key_value_heads": 2}
NARROW = {**GROUPED, "hidden_size": 64, "head_dim": 32}
FEW = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
LATENT = {**GROUPED, "hidden_size": 64, "num_key_value_heads": 4}
MLA = {"kv_lora_rank": 32, "q_lora_rank": None, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 32}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
}
PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 16,
    "long_factor": [1.0 + i for i in range(16)],
    "original_max_position_embeddings": 64,
}

DENSE: dict[str, dict[str, Any]] = {
    "Cohere": GROUPED,
    "Cohere2": {**GROUPED, "sliding_window": 24},
    "Exaone4": {**GROUPED, "sliding_window": None, "layer_types": ["full_attention"] * 2},
    "Falcon": {**SPECIAL, **{k: WIDE[k] for k in ("num_hidden_layers", "num_attention_heads", "hidden_size")}}
    | {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2, "max_position_embeddings": 256},
    "GPT2": {**SPECIAL, "n_positions": 256, "n_embd": 128, "n_layer": 2, "n_head": 4},
    "GPTBigCode": {**SPECIAL, "n_positions": 256, "n_embd": 128, "n_layer": 2, "n_head": 4},
    "GPTJ": {**SPECIAL, "n_positions": 256, "n_embd": 128, "n_layer": 2, "n_head": 4, "rotary_dim": 16},
    "GPTNeoX": WIDE,
    "Gemma": {**NARROW, "hidden_activation": "gelu_pytorch_tanh"},
    "Gemma2": {**NARROW, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "Gemma3Text": {**NARROW, "query_pre_attn_scalar": 32, "sliding_window": 32},
    "Glm": {**NARROW, "attention_bias": True},
    "Glm4": NARROW,
    "Granite": {**GROUPED, "logits_scaling": 4.0, "attention_multiplier": 0.2, "embedding_multiplier": 2.0}
    | {"residual_multiplier": 0.5},
    "Llama": {**NARROW, "rope_parameters": LLAMA3},
    "Mistral": {**GROUPED, "sliding_window": 24},
    "Nemotron": GROUPED,
    "OPT": {**SIZES, "hidden_size": 128, "ffn_dim": 128, "word_embed_proj_dim": 128},
    "Olmo": GROUPED,
    "Olmo2": GROUPED,
    "Olmo3": {**GROUPED, "sliding_window": 24},
    "Phi": WIDE,
    "Phi3": GROUPED,
    "Qwen2": {**GROUPED, "vocab_size": 136, "tie_word_embeddings": True},
    "Qwen3": {**NARROW, "tie_word_embeddings": True},
    "SeedOss": {**NARROW},
    "SmolLM3": GROUPED,
    "StableLm": GROUPED,
    "Starcoder2": GROUPED,
    "Bloom": {**SPECIAL, "hidden_size": 128, "n_layer": 2, "n_head": 4},
    "Ernie4_5": {**NARROW},
    "Arcee": GROUPED,
    "Apertus": GROUPED,
    "MiniCPM3": {**LATENT, **MLA, "q_lora_rank": 32, "dim_model_base": 16, "scale_emb": 2},
}

MIXTURES: dict[str, dict[str, Any]] = {
    "DeepseekV2": {**LATENT, **FEW, **MLA, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1}
    | {"topk_group": 1, "topk_method": "greedy"},
    "DeepseekV3": {**LATENT, **FEW, **MLA, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1}
    | {"topk_group": 1, "topk_method": "noaux_tc"},
    "Ernie4_5_Moe": {**GROUPED, "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64}
    | {"moe_layer_start_index": 1, "moe_layer_end_index": 1},
    "FlexOlmo": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "Glm4Moe": {**NARROW, **FEW, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "GptOss": {**NARROW, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32},
    "GraniteMoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "GraniteMoeShared": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
    "Mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "Olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "Phimoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    | {"attention_bias": True, "lm_head_bias": True},
    "Qwen2Moe": {**GROUPED, **FEW, "num_experts": 4, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1},
    "Qwen3Moe": {**NARROW, **FEW, "num_experts": 4, "decoder_sparse_step": 1, "norm_topk_prob": True},
    "Qwen3Next": {**NARROW, **FEW, **DELTA, "num_experts": 4, "shared_expert_intermediate_size": 64},
    "Dots1": {**NARROW, **FEW, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
    | {"n_shared_experts": 1},
    "HunYuanMoEV1": {**NARROW, "num_experts": 4, "moe_topk": 2},
}

VARIANTS: dict[str, dict[str, Any]] = {
    "Llama, tied head": {"tie_word_embeddings": True},
    "Llama, 131 tokens": {"vocab_size": 131},
    "Llama, 131 tokens, tied head": {"vocab_size": 131, "tie_word_embeddings": True},
    "Phi, 131 tokens": {"vocab_size": 131},
    "Gemma3Text, 131 tokens": {"vocab_size": 131},
    "Llama, biases": {"attention_bias": True, "mlp_bias": True},
    "Mistral, window 512": {"sliding_window": 512},
    "Mixtral, window 24": {"sliding_window": 24},
    "Qwen2, own head": {"tie_word_embeddings": False},
    "Qwen2, window 24": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0},
    "Qwen2, window 24 in one layer": {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    "Qwen3, own head": {"tie_word_embeddings": False},
    "Gemma3Text, window 512": {"sliding_window": 512},
    "OPT, norm behind, narrow embedding": {"do_layer_norm_before": False, "word_embed_proj_dim": 64},
    "Phi3, window 24, part rotated": {"sliding_window": 24, "tie_word_embeddings": True} | {"rope_parameters": PARTIAL},
    "Phi3, LongRoPE beyond 64": {"rope_parameters": LONG, "original_max_position_embeddings": 64},
    "Phi3, LongRoPE beyond 128": {"rope_parameters": LONG | {"original_max_position_embeddings": 128}}
    | {"original_max_position_embeddings": 128},
    "GPT2, own head": {"tie_word_embeddings": False},
    "GPTNeoX, tied head": {"tie_word_embeddings": True, "use_parallel_residual": False},
    "Falcon, ALiBi": {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "Cohere2, window 512": {"sliding_window": 512},
    "Exaone4, window 24 in one layer": {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]},
    "StableLm, parallel": {"use_parallel_residual": True},
    "Starcoder2, window 24": {"sliding_window": 24, "tie_word_embeddings": False},
    "Qwen3Moe, one dense layer": {"mlp_only_layers": [0]},
    "GptOss, window 512": {"sliding_window": 512},
    "Cohere2, own head": {"tie_word_embeddings": False},
    "Olmoe, tied head": {"tie_word_embeddings": True},
}
"""An architecture, a comma, what is special → options that replace those above."""

WITHOUT_CLASS = {"InternLM3": "internlm3", "MiniCPM": "minicpm"}
"""What vLLM has and transformers has not → `model_type`; such folders bring code of their own."""

NAMES = (*DENSE, *MIXTURES, *VARIANTS, *WITHOUT_CLASS)

OWN_ATTENTION = ("Falcon", "Falcon, ALiBi", "GPTJ", "Bloom", "Qwen3Next")
"""No attention over packed sequences (`roles.models.attention`)."""
REFUSED_ON_CPU = ("DeepseekV2", "DeepseekV3", "Ernie4_5_Moe", "MiniCPM3")
"""What vLLM's CPU build cannot run, or runs otherwise than transformers (`orchestrator.checks.model_support`)."""

NO_CLASSIFIER = (
    *(
        "Cohere",
        "Cohere2",
        "Cohere2, window 512",
        "Granite",
        "Ernie4_5",
        "Ernie4_5_Moe",
        "Apertus",
        "FlexOlmo",
        "Glm4Moe",
    ),
    *("GraniteMoe", "GraniteMoeShared", "Olmoe", "Dots1"),
)
"""Language models only, in transformers."""

REFUSED_BY_ENGINES = (
    *("Phimoe", "GptOss", "GptOss, window 512", "Qwen2, window 24 in one layer", "StableLm, parallel"),
    *("Cohere2, own head", "Olmoe, tied head"),
)
"""What vLLM cannot run, or runs otherwise than transformers, on every device."""

ROUNDED = {"Apertus": 0.02}
"""Architectures of whose activation vLLM keeps numbers in bfloat16 → what that may change in a log-probability."""

REFUSED: dict[str, tuple[str, ...]] = {
    "policy": (*OWN_ATTENTION, *REFUSED_BY_ENGINES, *WITHOUT_CLASS, "Phi3, LongRoPE beyond 64"),
    "engine on CPU": REFUSED_ON_CPU,
    "critic": NO_CLASSIFIER,
}
"""What is refused before the start, as what."""


def config(name: str) -> Any:
    """Of the architecture or variant `name`."""
    import transformers

    architecture = name.partition(",")[0]
    options = {**DENSE, **MIXTURES}[architecture] | VARIANTS.get(name, {})
    return getattr(transformers, f"{architecture}Config")(**options)


def save(name: str, folder: Path) -> Path:
    """A model of the architecture or variant `name` with the tiny tokenizer."""
    if name not in WITHOUT_CLASS:
        return _save(config(name), folder)
    file = _save(config("Llama"), folder) / "config.json"
    own = {"model_type": WITHOUT_CLASS[name], "architectures": [f"{name}ForCausalLM"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    return folder


def _save(config: Any, folder: Path) -> Path:
    random_model(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def random_model(config: Any, kind: Any = None) -> Any:
    """A model in float32, by default a language model."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    model = (kind or AutoModelForCausalLM).from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.normal_(0, 0.12)
        else:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    for name, buffer in model.named_buffers():
        if name.endswith("correction_bias"):  # of a router: chooses experts, and is not trained
            buffer.normal_(0, 0.1)
    return model
