"""Which architectures' layers may have fused kernels. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TANH = "gelu_pytorch_tanh"
FUSED_ARCHITECTURES = {
    "exaone4": ("hidden_act", "silu"),
    "gemma": ("hidden_act", TANH),
    "gemma2": ("hidden_activation", TANH),
    "gemma3_text": ("hidden_activation", TANH),
    "granite": ("hidden_act", "silu"),
    "llama": ("hidden_act", "silu"),
    "mistral": ("hidden_act", "silu"),
    "olmo2": ("hidden_act", "silu"),
    "olmo3": ("hidden_act", "silu"),
    "phi3": ("hidden_act", "silu"),
    "qwen2": ("hidden_act", "silu"),
    "qwen3": ("hidden_act", "silu"),
    "smollm3": ("hidden_act", "silu"),
}
"""`model_type` whose fused layers were compared with its own on a card (tests/gpu/test_fused_kernels.py) → the key of
config.json that names its activation, and the one activation that the fused layers have, which is also the default."""


def is_fusible(config: Mapping[str, Any]) -> bool:
    """Whether there are fused kernels that compute what the layers of this config.json do."""
    key, activation = FUSED_ARCHITECTURES.get(config.get("model_type", ""), ("", ""))
    return bool(key) and config.get(key, activation) == activation
