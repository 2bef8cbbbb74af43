"""Counts the parameters of a model that transformers makes on the meta device: exact, and nothing is allocated.

For architectures that `orchestrator.sizes.architectures` does not know, and as the reference of its tests. Imports
torch and transformers, which takes seconds: import it only where it is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from cluster.estimate.model_size import ModelSize
from roles.config.fused import is_fusible
from roles.config.models import LoraConfig
from roles.models.lora import adapter_parameters
from roles.models.scoring_head import has_plain_head

WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "ffn_hidden_dim")
"""Names of the MLP's width in configurations."""


def transformers_config(config: Mapping[str, Any], folder: str | None, *, trust_remote_code: bool) -> PretrainedConfig:
    """transformers' configuration for a config.json; `folder`: the folder (or hub name) with the model's own code.

    ValueError if transformers does not know the architecture.
    """
    if trust_remote_code and "auto_map" in config and folder is not None:
        made: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=True)
        return made
    said = dict(config)
    return AutoConfig.for_model(said.pop("model_type", ""), **said)


def size_of(config: PretrainedConfig, *, value_head: bool = False, trust_remote_code: bool = False) -> ModelSize:
    """Size of a model of this configuration; with `value_head` a head with one output replaces the language head."""
    text: Any = config.get_text_config()
    model = _on_meta(config, trust_remote_code)
    backbone = model.base_model
    kinds = [type(m).__name__ for m in backbone.modules()]
    layers = [m for m in backbone.modules() if type(m).__name__ in (model._no_split_modules or kinds)]
    experts = [found for layer in layers if (found := _experts(layer)) is not None]
    heads, latent = text.num_attention_heads, getattr(text, "kv_lora_rank", None)
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    if latent:
        head_width = (text.qk_nope_head_dim + text.qk_rope_head_dim + text.v_head_dim) // 2
    return ModelSize(
        parameters=_count(backbone) + text.hidden_size if value_head else _count(model),
        layer=max(_count(layer) for layer in layers),
        embedding=model.get_input_embeddings().weight.numel(),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=_width(text, layers),
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_width=head_width,
        vocabulary=0 if value_head else text.vocab_size,
        decoder=_decoder(backbone, layers, text.num_hidden_layers),
        experts=experts[0][0] if experts else 0,
        experts_per_token=text.num_experts_per_tok if experts else 0,
        expert=experts[0][1] if experts else 0,
        sparse_layers=len(experts),
        latent=latent + text.qk_rope_head_dim if latent else 0,
        fusible=is_fusible(config.to_dict()),
        whole_logits=not value_head and not has_plain_head(model),
    )


def adapters_of(config: PretrainedConfig, lora: LoraConfig, *, trust_remote_code: bool = False) -> int:
    """Number of parameters of the adapters; ModelError if a target is no layer of the model."""
    return adapter_parameters(_on_meta(config, trust_remote_code), lora)


def _on_meta(config: PretrainedConfig, trust_remote_code: bool) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _decoder(backbone: nn.Module, layers: list[nn.Module], number: int) -> int:
    """Parameters of all decoder layers; 0 if the modules found are not the decoder layers (but parts of them, say)."""
    return sum(map(_count, layers)) if len(layers) == number else 0


def _experts(layer: nn.Module) -> tuple[int, int] | None:
    """Number of routed experts in a layer, and parameters of one: transformers stacks them. None without experts."""
    for module in layer.modules():
        number = getattr(module, "num_experts", None)
        own = list(module.parameters(recurse=False))
        if number and any(p.dim() == 3 and len(p) == number for p in own):
            return number, sum(p.numel() for p in own) // number
    return None


def _width(text: Any, layers: list[nn.Module]) -> int:
    """Summed width of the MLPs that one token goes through."""
    plain = next((value for name in WIDTHS if (value := getattr(text, name, None))), 4 * text.hidden_size)
    passed = [_passed(layer, text) for layer in layers if _experts(layer)]
    return max([plain, *passed] if len(passed) < len(layers) else passed)


def _passed(layer: nn.Module, text: Any) -> int:
    """Summed width of the chosen experts and of the shared expert of a mixture of experts."""
    expert = getattr(text, "moe_intermediate_size", None) or text.intermediate_size
    named: dict[str, Any] = dict(layer.named_modules())
    shared = [m.in_features for name, m in named.items() if "shared" in name and name.endswith("down_proj")]
    return int(text.num_experts_per_tok * expert + sum(shared))


def _count(module: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(p.numel() for p in module.parameters())
