"""Differences between the decoders of the usual architectures: one row per `model_type` of a config.json.

The rows hold what transformers' own model classes do; a test compares every row with the class, parameter by parameter.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

Flag = bool | str
"""A fact, or the key of config.json that holds it."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """The experts of a layer. Strings are keys of config.json."""

    experts: tuple[str, ...]
    """The number of routed experts, under any of these names."""
    width: str
    """Width of one expert's gated MLP."""
    shared: tuple[str, ...] = ()
    """Keys whose product is the width of the shared expert; empty: there is no shared expert."""
    shared_name: str = "mlp.shared_experts"
    """Name of the shared expert's module."""
    shared_gate: bool = False
    """Whether a linear layer weights the shared expert's output."""
    bias: bool = False
    """Whether the experts and the router have biases."""


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of decoder; facts that are left out are as in Llama."""

    defaults: dict[str, Any] = field(default_factory=dict)
    """Values of keys that a config.json may leave out."""
    holds: dict[str, Any] = field(default_factory=dict)
    """Key → the only value for which this row is exact (also if the key is missing)."""
    keys: dict[str, str] = field(default_factory=dict)
    """Llama's key → the key of this family."""
    tied: bool = False
    """Whether head and embedding are one matrix if config.json does not say (`tie_word_embeddings`)."""
    attention: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    """Names of its linear layers: queries, keys, values, output; or two names, if the first three layers are fused."""
    latent: bool = False
    """Whether keys and values are computed from one narrow vector (DeepSeek's multi-head latent attention)."""
    qkv_bias: Flag = False
    out_bias: Flag = False
    head_norms: Literal["one for all heads", "one for each head"] | None = None
    """Norms of queries and of keys: one of the width of a head for all heads, or one for each head; None: no norms."""
    head_norms_if: Flag = True
    sinks: bool = False
    """Whether each head has one extra number beside its scores (an attention sink)."""
    mlp: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    """Names of the MLP's linear layers. Three: a gated MLP. Two: input and output."""
    fused_gate: bool = False
    """Whether the first of two linear layers is gate and up projection in one."""
    mlp_bias: Flag = False
    mixture: Mixture | None = None
    norms: int = 2
    """Number of norms of the layer's hidden states."""
    norm_vectors: int = 1
    """Vectors of a norm: 0 none, 1 a weight, 2 a weight and a bias."""
    final_norm: Flag = True
    head_bias: bool = False
    positions: tuple[str, int] | None = None
    """Key of the number of learned positions, and the number of additional positions; None: no learned positions."""
    embedding_width: str | None = None
    """Key of the embedding's width, if linear layers lead from it to the hidden width and back."""
    linear: bool = True
    """Whether the matrices are linear layers of torch, to which LoRA can be added."""
    plain_if: tuple[str, Any] | None = None
    """(key, value) for which the head's output is neither scaled nor capped; None: it never is."""
    whole_logits: bool = False
    """Whether `roles.models.scoring_head` can never replace the head, whatever config.json says."""


BIASES: dict[str, Any] = {"qkv_bias": "attention_bias", "out_bias": "attention_bias"}
NO_BIAS = {"attention_bias": False}
LLAMA = Family({**NO_BIAS, "mlp_bias": False, "num_key_value_heads": None}, mlp_bias="mlp_bias", **BIASES)
QWEN3 = Family({**NO_BIAS, "head_dim": 128}, head_norms="one for all heads", **BIASES)
GEMMA = Family({**NO_BIAS, "head_dim": 256}, tied=True, **BIASES)
GEMMA2 = replace(
    GEMMA,
    defaults=GEMMA.defaults | {"final_logit_softcapping": 30.0},
    norms=4,
    plain_if=("final_logit_softcapping", None),
)
OLMO2 = Family({**NO_BIAS, "num_key_value_heads": None}, head_norms="one for each head", **BIASES)
GRANITE = replace(LLAMA, defaults=LLAMA.defaults | {"logits_scaling": 1.0}, plain_if=("logits_scaling", 1.0))
COHERE = Family({**NO_BIAS, "logit_scale": 0.0625}, tied=True, norms=1, plain_if=("logit_scale", 1.0), **BIASES)
GLM = Family(
    {"attention_bias": True, "head_dim": 128},
    qkv_bias="attention_bias",
    mlp=("mlp.gate_up_proj", "mlp.down_proj"),
    fused_gate=True,
)
DEEPSEEK = Family(
    {**NO_BIAS, "mlp_bias": False},
    latent=True,
    mixture=Mixture(
        ("n_routed_experts", "num_local_experts", "num_experts"),
        "moe_intermediate_size",
        shared=("n_shared_experts", "moe_intermediate_size"),
    ),
    **BIASES,
)
EXPERTS = ("num_experts", "num_local_experts")

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": Family(),
    "ministral": Family(),
    "mixtral": Family(mixture=Mixture(EXPERTS, "intermediate_size")),
    "qwen2": Family(qkv_bias=True),
    "qwen2_moe": Family(
        {"qkv_bias": True},
        qkv_bias="qkv_bias",
        mixture=Mixture(
            EXPERTS,
            "moe_intermediate_size",
            shared=("shared_expert_intermediate_size",),
            shared_name="mlp.shared_expert",
            shared_gate=True,
        ),
    ),
    "qwen3": QWEN3,
    "qwen3_moe": replace(QWEN3, defaults=NO_BIAS, mixture=Mixture(EXPERTS, "moe_intermediate_size")),
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3_text": replace(
        GEMMA2, defaults=GEMMA.defaults | {"final_logit_softcapping": None}, head_norms="one for all heads"
    ),
    "phi": Family(
        {"num_key_value_heads": None},
        holds={"qk_layernorm": False},
        attention=(*LLAMA.attention[:3], "self_attn.dense"),
        qkv_bias=True,
        out_bias=True,
        mlp=("mlp.fc1", "mlp.fc2"),
        mlp_bias=True,
        norms=1,
        norm_vectors=2,
        head_bias=True,
    ),
    "phi3": Family(
        {"num_key_value_heads": None},
        attention=("self_attn.qkv_proj", "self_attn.o_proj"),
        mlp=("mlp.gate_up_proj", "mlp.down_proj"),
        fused_gate=True,
    ),
    "gpt2": Family(
        {"n_inner": None},
        holds={"add_cross_attention": False},
        keys={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "num_key_value_heads": "n_head",
            "intermediate_size": "n_inner",
        },
        tied=True,
        attention=("attn.c_attn", "attn.c_proj"),
        qkv_bias=True,
        out_bias=True,
        mlp=("mlp.c_fc", "mlp.c_proj"),
        mlp_bias=True,
        norm_vectors=2,
        positions=("n_positions", 0),
        linear=False,
        whole_logits=True,
    ),
    "gpt_neox": Family(
        {"attention_bias": True},
        keys={"num_key_value_heads": "num_attention_heads"},
        attention=("attention.query_key_value", "attention.dense"),
        mlp=("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        mlp_bias=True,
        norm_vectors=2,
        **BIASES,
    ),
    "opt": Family(
        {"do_layer_norm_before": True},
        holds={"_remove_final_layer_norm": False, "layer_norm_elementwise_affine": True, "enable_bias": True},
        keys={"intermediate_size": "ffn_dim", "num_key_value_heads": "num_attention_heads"},
        tied=True,
        attention=(*LLAMA.attention[:3], "self_attn.out_proj"),
        qkv_bias=True,
        out_bias=True,
        mlp=("fc1", "fc2"),
        mlp_bias=True,
        norm_vectors=2,
        final_norm="do_layer_norm_before",
        positions=("max_position_embeddings", 2),
        embedding_width="word_embed_proj_dim",
        whole_logits=True,
    ),
    "olmo": replace(OLMO2, head_norms=None, norm_vectors=0),
    "olmo2": OLMO2,
    "olmo3": OLMO2,
    "olmoe": replace(OLMO2, mixture=Mixture(EXPERTS, "intermediate_size")),
    "granite": GRANITE,
    "granitemoe": replace(GRANITE, mixture=Mixture(EXPERTS, "intermediate_size")),
    "cohere": replace(
        COHERE,
        defaults=COHERE.defaults | {"use_qk_norm": False},
        head_norms="one for each head",
        head_norms_if="use_qk_norm",
    ),
    "cohere2": COHERE,
    "smollm3": replace(LLAMA, defaults={**NO_BIAS, "mlp_bias": False}, tied=True),
    "stablelm": Family(
        {"use_qkv_bias": False, "qk_layernorm": False},
        holds={"use_parallel_residual": False},
        qkv_bias="use_qkv_bias",
        head_norms="one for each head",
        head_norms_if="qk_layernorm",
        norm_vectors=2,
    ),
    "starcoder2": Family(
        {"use_bias": True},
        tied=True,
        qkv_bias="use_bias",
        out_bias="use_bias",
        mlp=("mlp.c_fc", "mlp.c_proj"),
        mlp_bias="use_bias",
        norm_vectors=2,
    ),
    "glm": GLM,
    "glm4": replace(GLM, norms=4),
    "deepseek_v2": replace(DEEPSEEK, mlp_bias="mlp_bias"),
    "deepseek_v3": replace(DEEPSEEK, defaults=DEEPSEEK.defaults | {"first_k_dense_replace": 3}),
    "gpt_oss": Family(
        {"attention_bias": True, "head_dim": 64},
        sinks=True,
        mixture=Mixture(EXPERTS, "intermediate_size", bias=True),
        **BIASES,
    ),
}
