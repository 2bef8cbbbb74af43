"""The keys of a GGUF file that transformers does not read: they are carried over, or the file is refused.

A file flows in; its configuration, complete, flows out, or a ModelError that names the key or tensor that would be
lost. Keys are those of llama.cpp's specification, without the architecture in front (`rope.scaling.type`). No weight is
read but the factors of rotary frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.integrations.gguf.gguf_conversion_mapping import GGUF_ARCHS
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

from roles.errors import ModelError
from roles.model_files.gguf_header import GgufFile
from roles.model_files.gguf_rope import FREQUENCY_FACTORS, rope_parameters
from roles.model_files.weight_check import few

CARRIED: dict[str, tuple[str, ...]] = {
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner", "ffn_dim"),
    "vocab_size": ("vocab_size",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_attention_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "expert_count": ("num_experts", "num_local_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "use_parallel_residual": ("use_parallel_residual",),
}
"""GGUF key → names of the setting in transformers' configurations, of which the first that exists counts."""

WITHOUT_EFFECT: dict[str, Any] = {"attention.causal": True, "expert_count": 0, "expert_used_count": 0}
"""GGUF key → the value with which a language model computes the same as without the key."""

NEUTRAL = frozenset({"tensor_data_layout"})
"""Keys that do not change any number."""


def complete(config: PretrainedConfig, file: GgufFile) -> PretrainedConfig:
    """transformers' `config` completed with the file's other keys; ModelError if one cannot be kept."""
    changes: dict[str, Any] = {}
    rope = {key: value for key, value in file.said.items() if key.startswith("rope.")}
    for key, value in file.said.items():
        if key in rope or key in NEUTRAL or WITHOUT_EFFECT.get(key) == value:
            continue
        name = next((name for name in CARRIED.get(key, ()) if hasattr(config, name)), None)
        if name is None and (key not in CARRIED or not _same(_derived(config, key), value)):
            raise file.lost(f"{file.architecture}.{key}={value!r}")
        if name is not None and not _same(getattr(config, name), value):
            changes[name] = value
    made = _changed(config, changes)
    scaled = _changed(made, rope_parameters(made, file, rope))
    for key, value in file.said.items():
        name = next((name for name in CARRIED.get(key, ()) if hasattr(scaled, name)), None)
        if name is not None and WITHOUT_EFFECT.get(key) != value and not _same(getattr(scaled, name), value):
            raise file.lost(f"{file.architecture}.{key}={value!r}")
    return scaled


def _changed(config: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    if not changes:
        return config
    made: PretrainedConfig = type(config).from_dict({**config.to_dict(), **changes})
    return made


def _derived(config: PretrainedConfig, key: str) -> Any:
    """The value of `key` that follows from other keys of a configuration that has no name for it."""
    if CARRIED[key] == ("head_dim",):
        return config.hidden_size // config.num_attention_heads
    return None


def _same(mine: Any, said: Any) -> bool:
    if isinstance(mine, int | float) and isinstance(said, int | float):
        return math.isclose(mine, said, rel_tol=1e-6)  # the file has float32
    return bool(mine == said)


def check_tensors(config: PretrainedConfig, file: GgufFile) -> None:
    """Raise ModelError unless the file has exactly the tensors of a language model of `config`."""
    if file.architecture in GGUF_ARCHS:  # transformers reports missing and unexpected tensors of these
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)(config=config.to_dict())
    known: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    known |= {f"{name}.weight": parameter for name, parameter in known.items() if name.endswith("_exps")}
    if "lm_head.weight" in model.state_dict():
        known.setdefault("output.weight", "lm_head.weight")
    others = [name for name in file.tensors if name not in known and name != FREQUENCY_FACTORS]
    if others:
        raise file.lost(f"{len(others)} tensors that its model has not: {few(others)}")
    found = {known[name] for name in file.tensors if name in known} | model.all_tied_weights_keys.keys()
    missing = model.state_dict().keys() - found
    if missing:
        raise ModelError(f"{file.path} lacks weights of its model: {few(missing)}; fetch it anew")
