"""Counts the parameters of a decoder from its config.json alone: no torch, no weights. Pure.

A config.json (a mapping) flows in, a Decoder flows out, or None for an architecture that `orchestrator.sizes.families`
does not list. The counts are exact: a test compares them with the models that transformers makes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from cluster.estimate.model_size import ModelSize
from orchestrator.sizes.families import FAMILIES, Family, Flag, Mixture
from roles.config.fused import is_fusible

Linear = tuple[int, int]
"""(inputs, outputs) of a linear layer."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Parameters of one decoder layer."""

    linear: tuple[tuple[str, Linear], ...]
    """(name, shape) of each matrix outside the routed experts, such as (`self_attn.q_proj`, (4096, 4096))."""
    other: int
    """Parameters of biases, norms, routers."""
    experts: int = 0
    expert: int = 0
    """Parameters of one routed expert."""
    width: int = 0
    """Summed width of the MLPs that one token goes through."""

    @property
    def parameters(self) -> int:
        """Parameters of the layer."""
        return sum(prod(shape) for _, shape in self.linear) + self.other + self.experts * self.expert


@dataclass(frozen=True, slots=True)
class Decoder:
    """Parameters of a causal language model."""

    layers: tuple[tuple[Layer, int], ...]
    """Each kind of layer, with the number of such layers."""
    linear: tuple[tuple[str, Linear], ...]
    """Linear layers of the backbone outside the decoder layers."""
    embedding: int
    other: int
    """Parameters of learned positions and of the final norm."""
    head: int
    """Parameters of the language head; 0 if it is the embedding."""
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_width: int
    latent: int
    experts_per_token: int
    fusible: bool
    """Whether there are fused kernels for its layers."""
    adaptable: bool
    """Whether LoRA can be added to the linear layers."""
    whole_logits: bool

    def size(self, *, value_head: bool = False) -> ModelSize:
        """Size of the model; with `value_head` a head with one output replaces the language head."""
        in_layers = sum(layer.parameters * count for layer, count in self.layers)
        backbone = in_layers + sum(prod(shape) for _, shape in self.linear) + self.embedding + self.other
        sparse = [(layer, count) for layer, count in self.layers if layer.experts]
        return ModelSize(
            parameters=backbone + (self.hidden if value_head else self.head),
            layer=max(layer.parameters for layer, _ in self.layers),
            embedding=self.embedding,
            layers=sum(count for _, count in self.layers),
            hidden=self.hidden,
            intermediate=max(layer.width for layer, _ in self.layers),
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_width=self.head_width,
            vocabulary=0 if value_head else self.vocabulary,
            decoder=in_layers,
            experts=sparse[0][0].experts if sparse else 0,
            experts_per_token=self.experts_per_token if sparse else 0,
            expert=sparse[0][0].expert if sparse else 0,
            sparse_layers=sum(count for _, count in sparse),
            latent=self.latent,
            fusible=self.fusible,
            whole_logits=self.whole_logits and not value_head,
        )

    def adapters(self, rank: int, targets: Iterable[str]) -> int | None:
        """Parameters of LoRA on the linear layers whose names end in one of `targets` (or on `all-linear` ones).

        None if a target matches no layer.
        """
        inside = [(name, shape, count) for layer, count in self.layers for name, shape in layer.linear]
        everywhere = [*inside, *((name, shape, 1) for name, shape in self.linear)]
        wanted = {name: [target for target in targets if _names(target, name)] for name, _, _ in everywhere}
        if not self.adaptable or set(targets) - {target for found in wanted.values() for target in found}:
            return None
        return sum(rank * sum(shape) * count for name, shape, count in everywhere if wanted[name])


def _names(target: str, name: str) -> bool:
    return target == "all-linear" or f".{name}".endswith(f".{target}")


def decoder_of(config: Mapping[str, Any]) -> Decoder | None:
    """The decoder that a config.json describes; None if only transformers knows it, or a value is invalid."""
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None or "text_config" in config:
        return None
    if any(config.get(key, value) != value for key, value in family.holds.items()):
        return None
    try:
        return _Reader(config, family).decoder()
    except (KeyError, TypeError, ZeroDivisionError):
        return None


def size_by_weights(config: Mapping[str, Any], parameters: int, *, value_head: bool = False) -> ModelSize | None:
    """Estimated size of an unknown architecture with `parameters` parameters and the usual keys.

    Assumes that all layers are equal and all experts active. None if the usual keys are missing.
    """
    text: Mapping[str, Any] = config.get("text_config", config)
    try:
        hidden, layers, heads = (int(text[key]) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
        vocabulary, width = int(text["vocab_size"]), int(text["intermediate_size"])
    except (KeyError, TypeError):
        return None
    embedding = vocabulary * hidden
    head = 0 if text.get("tie_word_embeddings", config.get("tie_word_embeddings", False)) else embedding
    return ModelSize(
        parameters=parameters - head + hidden if value_head else parameters,
        layer=max(parameters - head - embedding, 0) // layers,
        embedding=embedding,
        layers=layers,
        hidden=hidden,
        intermediate=width,
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_width=text.get("head_dim") or hidden // heads,
        vocabulary=0 if value_head else vocabulary,
        whole_logits=not value_head,
        estimated=True,
    )


class _Reader:
    """Counts the parameters of one model. Raises KeyError if config.json lacks a required key."""

    def __init__(self, config: Mapping[str, Any], family: Family) -> None:
        self.config = config
        self.family = family
        self.hidden: int = self.get("hidden_size")
        self.heads: int = self.get("num_attention_heads")
        self.kv_heads: int = self.get("num_key_value_heads") or self.heads
        self.width: int = self.get("intermediate_size") or 4 * self.hidden
        self.head: int = self.get("head_dim", None) or self.hidden // self.heads

    def get(self, key: str, *default: Any) -> Any:
        """A value of config.json by Llama's name of the key."""
        key = self.family.keys.get(key, key)
        if key in self.config:
            return self.config[key]
        if key in self.family.defaults or not default:
            return self.family.defaults[key]
        return default[0]

    def flag(self, flag: Flag) -> bool:
        return bool(self.get(flag)) if isinstance(flag, str) else flag

    def decoder(self) -> Decoder:
        family, hidden, vocabulary = self.family, self.hidden, self.get("vocab_size")
        kinds = Counter(self._is_sparse(index) for index in range(self.get("num_hidden_layers")))
        narrow = self.get(family.embedding_width) if family.embedding_width else hidden
        projections = (("project_in", (narrow, hidden)), ("project_out", (hidden, narrow))) if narrow != hidden else ()
        positions = (self.get(family.positions[0]) + family.positions[1]) * hidden if family.positions else 0
        tied = self.get("tie_word_embeddings", family.tied)
        return Decoder(
            layers=tuple((self._layer(sparse), count) for sparse, count in kinds.items()),
            linear=projections,
            embedding=vocabulary * narrow,
            other=positions + (hidden * family.norm_vectors if self.flag(family.final_norm) else 0),
            head=(0 if tied else vocabulary * narrow) + (vocabulary if family.head_bias else 0),
            hidden=hidden,
            vocabulary=vocabulary,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_width=self._head_width(),
            latent=self.get("kv_lora_rank") + self.get("qk_rope_head_dim") if family.latent else 0,
            experts_per_token=self.get("num_experts_per_tok") if family.mixture else 0,
            fusible=is_fusible(self.config),
            adaptable=family.linear,
            whole_logits=family.whole_logits or (family.plain_if is not None and not self._is_plain(*family.plain_if)),
        )

    def _is_plain(self, key: str, value: Any) -> bool:
        return bool(self.get(key) == value)

    def _is_sparse(self, index: int) -> bool:
        """Whether the layer is a mixture of experts: every nth layer, except the first ones and those listed as
        dense."""
        if self.family.mixture is None or not self._experts(self.family.mixture):
            return False
        named = self.get("mlp_only_layers", None) or ()
        step = self.get("decoder_sparse_step", 1)
        return index >= self.get("first_k_dense_replace", 0) and index not in named and (index + 1) % step == 0

    def _experts(self, mixture: Mixture) -> int:
        named = [key for key in mixture.experts if key in self.config]
        return int(self.get(named[0] if named else mixture.experts[0]))

    def _layer(self, sparse: bool) -> Layer:
        family = self.family
        linear, biases = self._latent_attention() if family.latent else self._attention()
        norms = family.norms * family.norm_vectors * self.hidden
        if family.head_norms and self.flag(family.head_norms_if):
            many = family.head_norms == "one for each head"
            norms += (self.heads + self.kv_heads if many else 2) * self.head
        other = biases + norms + (self.heads if family.sinks else 0)
        if sparse and family.mixture is not None:
            return self._with_experts(family.mixture, linear, other)
        mlp, biases = self._mlp(family.mlp, self.width, self.flag(family.mlp_bias))
        return Layer((*linear, *mlp), other + biases, width=self.width)

    def _attention(self) -> tuple[tuple[tuple[str, Linear], ...], int]:
        """Linear layers and number of biases of attention."""
        family, hidden = self.family, self.hidden
        queries, keys = self.heads * self.head, self.kv_heads * self.head
        *names, out = family.attention
        outputs = [queries, keys, keys] if len(names) == 3 else [queries + 2 * keys]
        biases = sum(outputs) * self.flag(family.qkv_bias) + hidden * self.flag(family.out_bias)
        read = tuple((name, (hidden, width)) for name, width in zip(names, outputs, strict=True))
        return (*read, (out, (queries, hidden))), biases

    def _latent_attention(self) -> tuple[tuple[tuple[str, Linear], ...], int]:
        """Linear layers, and number of biases and norms, of multi-head latent attention (arXiv 2405.04434, section
        2.1)."""
        hidden, biased = self.hidden, self.flag(self.family.qkv_bias)
        narrow, latent, rotated = self.get("q_lora_rank"), self.get("kv_lora_rank"), self.get("qk_rope_head_dim")
        plain, value = self.get("qk_nope_head_dim"), self.get("v_head_dim")
        queries = self.heads * (plain + rotated)
        linear: dict[str, Linear] = (
            {"q_a_proj": (hidden, narrow), "q_b_proj": (narrow, queries)} if narrow else {"q_proj": (hidden, queries)}
        )
        linear |= {
            "kv_a_proj_with_mqa": (hidden, latent + rotated),
            "kv_b_proj": (latent, self.heads * (plain + value)),
            "o_proj": (self.heads * value, hidden),
        }
        biases = ((narrow or 0) + latent + rotated + hidden) * biased
        return tuple((f"self_attn.{name}", shape) for name, shape in linear.items()), biases + (narrow or 0) + latent

    def _head_width(self) -> int:
        if not self.family.latent:
            return self.head
        return int(self.get("qk_nope_head_dim") + self.get("qk_rope_head_dim") + self.get("v_head_dim")) // 2

    def _mlp(self, names: tuple[str, ...], width: int, biased: bool) -> tuple[tuple[tuple[str, Linear], ...], int]:
        """Linear layers and number of biases of an MLP."""
        *inward, outward = names
        wide = 2 * width if self.family.fused_gate else width
        biases = (len(inward) * wide + self.hidden) * biased
        return (*((name, (self.hidden, wide)) for name in inward), (outward, (width, self.hidden))), biases

    def _with_experts(self, mixture: Mixture, linear: tuple[tuple[str, Linear], ...], other: int) -> Layer:
        experts, width = self._experts(mixture), self.get(mixture.width)
        expert = 3 * width * self.hidden + (2 * width + self.hidden) * mixture.bias
        shared = prod(self.get(key) for key in mixture.shared) if mixture.shared else 0
        router = experts * (self.hidden + mixture.bias)
        passed = self.get("num_experts_per_tok") * width + shared
        if shared:
            names = tuple(f"{mixture.shared_name}.{part}_proj" for part in ("gate", "up", "down"))
            mlp, biases = self._mlp(names, shared, self.flag(self.family.mlp_bias))
            linear, other = (*linear, *mlp), other + biases
        if mixture.shared_gate:
            linear = (*linear, (f"{mixture.shared_name}_gate", (self.hidden, 1)))
        return Layer(linear, other + router, experts, expert, passed)
