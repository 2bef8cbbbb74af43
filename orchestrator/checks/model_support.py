"""Checks that roles and engines can run a model's architecture and weights, before any of them starts.

A ModelFacts flows in, nothing or a ConfigError flows out. No weight is read, only names and shapes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from orchestrator.checks.models import ModelFacts
from orchestrator.errors import ConfigError
from roles.config.section import Dtype
from roles.errors import ModelError
from roles.model_files.weight_files import stored_weights

if TYPE_CHECKING:
    from roles.model_files.weight_check import Use

_WITHOUT_BIAS = "vLLM 0.32 leaves the bias of its head out, and cannot run the class of transformers instead"
OTHERWISE = {
    "PhimoeForCausalLM": _WITHOUT_BIAS,
    "PhiMoEForCausalLM": _WITHOUT_BIAS,
    "GptOssForCausalLM": "vLLM 0.32 writes its weights past the hooks of a layerwise reload, so no push reaches it",
}
"""Architectures whose engines, on every device, compute something else than the trainer or cannot load its weights."""

OWN_HEAD_ALWAYS = (
    *("AXK1", "Afmoe", "Dbrx", "DeepseekV2", "DeepseekV3", "DeepseekV32", "DeepseekV4", "GPTJ", "Glm4Moe"),
    *("Glm4MoeLite", "GlmMoeDsa", "GptOss", "Jamba", "LongcatFlash", "MiMoV2Flash", "MiniMaxM2", "Olmoe"),
    *("Qwen3Next", "Qwen4Exp"),
)
OWN_HEAD_NEVER = ("Cohere", "Cohere2", "Cohere2Moe", "Gemma2", "Gemma3n", "Lfm2", "Lfm2Moe", "Zamba2")
"""Architectures (…ForCausalLM) to which vLLM 0.32 gives a head beside the embedding, or the embedding as head, whatever
config.json says (`tie_word_embeddings`; transformers' default is what vLLM does)."""

_NO_BIAS, _SILU = {"attention_bias": False}, {"hidden_act": "silu"}
UNREAD: dict[str, dict[str, Any]] = {
    "CohereForCausalLM": _NO_BIAS | _SILU,
    "Cohere2ForCausalLM": _NO_BIAS | _SILU,
    "DeepseekV2ForCausalLM": _NO_BIAS | {"mlp_bias": False},
    "DeepseekV3ForCausalLM": _NO_BIAS | {"rope_interleave": True},
    "Ernie4_5ForCausalLM": {"use_bias": False},
    "GPT2LMHeadModel": {"scale_attn_weights": True},
    "GemmaForCausalLM": _NO_BIAS,
    "GraniteMoeForCausalLM": _NO_BIAS | _SILU,
    "GraniteMoeSharedForCausalLM": _NO_BIAS,
    "MiniCPM3ForCausalLM": _NO_BIAS | {"mlp_bias": False},
    "MixtralForCausalLM": _SILU,
    "OlmoeForCausalLM": _NO_BIAS | _SILU | {"clip_qkv": None, "norm_topk_prob": False, "rms_norm_eps": 1e-5},
    "Qwen2MoeForCausalLM": {"qkv_bias": True},
    "StableLmForCausalLM": _SILU | {"use_parallel_residual": False, "qk_layernorm": False},
}
"""Architecture → keys of config.json that vLLM 0.32 does not read → the value of transformers' default, with which it
computes."""

WINDOWS = ("qwen2", "qwen2_moe", "qwen3")
"""Model types that vLLM 0.32 runs with sliding windows in all layers or in none."""

OTHERWISE_ON_CPU = {
    "Ernie4_5_MoeForCausalLM": "vLLM's CPU build chooses other experts than transformers does (it reads the router's "
    "correction bias otherwise)",
}
"""Architectures whose engines compute something else than the trainer on CPU only."""

LATENT_SIZE = 576
"""Width of a cached token for which vLLM's latent attention on CPU is compiled: DeepSeek's 512 + 64."""

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head widths for which vLLM's attention on CPU (0.32) is compiled."""


def check_attention(model: ModelFacts) -> None:
    """Raise ConfigError unless every layer attends through transformers' interface: the trainer's roles read packed
    sequences."""
    # These load torch: not before the quick checks have passed.
    from roles.model_files.config_json import read_config
    from roles.models.attention import check_architecture

    trust = model.source.trust_remote_code
    try:
        check_architecture(read_config(model.folder, trust_remote_code=trust), trust_remote_code=trust)
    except (ModelError, ValueError, OSError) as error:
        raise ConfigError(f"{model.where}: {error}") from None


def check_weights(model: ModelFacts, use: Use) -> None:
    """Raise ConfigError unless the folder has exactly the weights that the role reads."""
    from roles.model_files import weight_check  # loads torch

    try:
        weight_check.check_weights(model.folder, use, trust_remote_code=model.source.trust_remote_code)
    except weight_check.NoSuchClass as error:
        critic = use == "value" and model.key in ("critic.model", "actor.model")
        otherwise = ", or train without a critic (such as ppo.advantage.type: rloo)" if critic else ""
        raise ConfigError(f"{model.where}: {error}; use another architecture{otherwise}") from None
    except ModelError as error:
        raise ConfigError(f"{model.where}: {error}") from None


def check_engine_class(model: ModelFacts) -> None:
    """Raise ConfigError unless vLLM computes what the trainer computes, and can load weights while it runs."""
    for architecture in model.config.get("architectures") or []:
        if architecture in OTHERWISE:
            raise ConfigError(f"{model.where} is a {architecture}: {OTHERWISE[architecture]}; use another model")
        _check_head(model, architecture)
        for key, taken in UNREAD.get(architecture, {}).items():
            if (value := model.text.get(key, taken)) != taken:
                raise ConfigError(
                    f"{model.where} is a {architecture} with {key}={value!r}, which vLLM 0.32 does not read (it "
                    f"computes as with {taken!r}); use another model"
                )
    if _in_some_layers(model):
        raise ConfigError(
            f"{model.where} has sliding windows in some of its {model.layers} layers, and vLLM 0.32 runs a "
            f"{model.text['model_type']} with windows in all or in none; use another model"
        )


def _in_some_layers(model: ModelFacts) -> bool:
    """Whether some layers have windows and others none, in a model that vLLM cannot run so."""
    text, layers = model.text, model.layers or 0
    if text.get("model_type") not in WINDOWS or not text.get("use_sliding_window"):
        return False
    if text.get("layer_types"):
        return len(set(text["layer_types"])) > 1
    first = text.get("max_window_layers", 28)
    return layers > 1 and first > 0 if text["model_type"] == "qwen2_moe" else 0 < first < layers


def _check_head(model: ModelFacts, architecture: str) -> None:
    name, tied = architecture.removesuffix("ForCausalLM"), model.text.get("tie_word_embeddings")
    if name in OWN_HEAD_ALWAYS and tied:
        raise ConfigError(
            f"{model.where} is a {architecture} whose embedding is its head (tie_word_embeddings: true), and vLLM 0.32 "
            "gives it another head, which no push reaches; store its head (lm_head.weight) and set "
            "tie_word_embeddings: false in config.json, or use another model"
        )
    if name in OWN_HEAD_NEVER and not (tied is None or tied):
        raise ConfigError(
            f"{model.where} is a {architecture} with a head of its own (tie_word_embeddings: false), and vLLM 0.32 "
            "takes its embedding as head; use another model"
        )


def check_engine_weights(model: ModelFacts) -> None:
    """Raise ConfigError for a folder with the head alone of a pair of tied weights, as `safetensors.torch.save_model`
    writes it: transformers takes it for both. No layer's weight is an embedding."""
    stored = {name: tensor for name, tensor in stored_weights(model.folder).items() if not re.search(r"\.\d+\.", name)}
    head = next((name for name in stored if name.endswith("lm_head.weight")), None)
    if head is None or model.text.get("tie_word_embeddings") is False:
        return
    if all(tensor.shape != stored[head].shape for name, tensor in stored.items() if name != head):
        raise ConfigError(
            f"{model.where} stores {head} without the embedding that is tied to it, which vLLM 0.32 leaves "
            "uninitialised; save it anew with transformers (from_pretrained, then save_pretrained)"
        )


def check_cpu_engine(model: ModelFacts, dtype: Dtype) -> None:
    """Raise ConfigError for a model that vLLM's CPU build (0.32) cannot run correctly, which it would report a
    minute after the start, or never."""
    for architecture in model.config.get("architectures") or []:
        if architecture in OTHERWISE_ON_CPU:
            raise ConfigError(
                f"{model.where} is a {architecture}: {OTHERWISE_ON_CPU[architecture]}; use device: cuda or another "
                "model"
            )
    latent = model.config.get("kv_lora_rank")
    if not isinstance(latent, int):
        _check_head_size(model)
        return
    size = latent + int(model.config.get("qk_rope_head_dim") or 0)
    if dtype != "bfloat16" or size != LATENT_SIZE:
        raise ConfigError(
            f"{model.where} has latent attention (kv_lora_rank + qk_rope_head_dim = {size}), which vLLM's CPU build "
            f"has for {LATENT_SIZE} in bfloat16 alone, and the engines' dtype is {dtype}; "
            + ("set rollout.engine.dtype: bfloat16" if size == LATENT_SIZE else "use device: cuda or another model")
        )


def _check_head_size(model: ModelFacts) -> None:
    if model.head_size is not None and model.head_size not in HEAD_SIZES:
        raise ConfigError(
            f"{model.where} has attention heads of {model.head_size} numbers (head_dim), and vLLM's CPU build has them "
            f"of {', '.join(map(str, HEAD_SIZES))}; use device: cuda or another model"
        )
