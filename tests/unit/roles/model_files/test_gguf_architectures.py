"""GGUF files of other architectures, with the keys that llama.cpp writes: the folder computes what the model did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from roles.config.models import ModelConfig
from roles.model_files.conversion import resolve_model
from tests.unit.roles.model_files.test_conversion import TOKENS

BASE = {"vocab_size": len(TOKENS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
BASE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
BASE |= {"tie_word_embeddings": False, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**BASE, "head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GPT2 = {"vocab_size": len(TOKENS), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}


def heads(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(16)
    writer.add_value_length(16)


def experts(writer: gguf.GGUFWriter) -> None:
    writer.add_expert_count(4)
    writer.add_expert_used_count(2)
    writer.add_expert_feed_forward_length(16)


def phi3(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_dimension_count(8)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_sliding_window(4)


CASES: dict[str, tuple[str, dict[str, Any], Callable[[gguf.GGUFWriter], Any]]] = {
    "qwen2": ("Qwen2Config", BASE, lambda writer: None),
    "qwen3": ("Qwen3Config", WIDE, heads),
    "phi3": ("Phi3Config", {**BASE, "sliding_window": 4}, phi3),
    "starcoder2": ("Starcoder2Config", BASE, lambda writer: None),
    "stablelm": ("StableLmConfig", BASE, lambda w: (w.add_rope_dimension_count(2), w.add_parallel_residual(False))),
    "gpt2": ("GPT2Config", GPT2, lambda writer: None),
    "qwen2moe": (
        "Qwen2MoeConfig",
        {**BASE, **EXPERTS, "shared_expert_intermediate_size": 24},
        lambda w: (experts(w), w.add_expert_shared_feed_forward_length(24)),
    ),
    "qwen3moe": ("Qwen3MoeConfig", {**WIDE, **EXPERTS, "norm_topk_prob": True}, lambda w: (experts(w), heads(w))),
}


def write(file: Path, name: str, config: Any, state: dict[str, torch.Tensor], say: Callable[..., Any]) -> None:
    writer = gguf.GGUFWriter(file, name)
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_vocab_size(len(TOKENS))
    if name != "gpt2":
        writer.add_head_count_kv(2)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(1e-5)
    say(writer)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] * 3 + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(2)
    names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == name), 2)
    for key, tensor in state.items():
        module, _, kind = key.rpartition(".")
        layer = f"blk.{key.split('.')[2]}" if "layers" in key else ""
        if kind == "gate_up_proj":
            for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
                writer.add_tensor(f"{layer}.ffn_{part}_exps.weight", np.ascontiguousarray(half))
        elif kind == "down_proj":
            writer.add_tensor(f"{layer}.ffn_down_exps.weight", tensor.numpy())
        else:
            turned = name == "gpt2" and kind == "weight" and tensor.dim() == 2 and ".h." in key
            plain = tensor.T if turned else tensor[0] if "shared_expert_gate" in key else tensor
            writer.add_tensor(f"{names.get_name(module)}.{kind}", np.ascontiguousarray(plain))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", CASES)
def test_the_folder_computes_what_the_model_did(tmp_path: Path, name: str) -> None:
    """Also what transformers by itself forgets: a width of heads, a window, a base of rotary positions."""
    kind, options, say = CASES[name]
    theta = {} if name == "gpt2" else {"rope_parameters": {"rope_type": "default", "rope_theta": 70000.0}}
    if name == "stablelm":
        theta["rope_parameters"]["partial_rotary_factor"] = 0.25
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**options, **theta, initializer_range=0.3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in tied}
    write(tmp_path / "model.gguf", name, config, state, say)
    folder = resolve_model(ModelConfig(path=str(tmp_path), gguf_file="model.gguf"), tmp_path / "cache")
    tokens = torch.arange(3, len(TOKENS))[None]
    with torch.no_grad():
        torch.testing.assert_close(
            AutoModelForCausalLM.from_pretrained(folder).eval()(tokens).logits, model(tokens).logits, atol=1e-5, rtol=0
        )
