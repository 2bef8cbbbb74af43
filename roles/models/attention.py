"""Attention over packed sequences, plugged into transformers' models.

In: queries, keys and values of one row `[1, heads, tokens, dim]` that holds several sequences one after the other, and
a `Layout` that says where each starts. Out: each token's attention over its own sequence up to itself. The models see
no padding and transformers builds no mask (it makes masks only for implementations that register one). Loaded models
ask for it by name (`IMPLEMENTATION`); `roles.models.networks` passes the layout as the keyword `layout`.

GPUs run PyTorch's variable-length flash attention in half precision, unless scores are capped or have sinks. Elsewhere
the sequences are padded inside the attention only: with padding on the right and a causal mask, no real token attends
to a padding token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AutoModelForCausalLM, PretrainedConfig

from roles.errors import ModelError
from roles.models.keywords import pass_on_layout
from roles.models.scored_attention import scored_attention

IMPLEMENTATION = "tetrarch_packed"
CHECKED = "tetrarch_checked"
"""The attention implementation of a model that `check_architecture` runs once, without numbers."""

SHARED_HEADS: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
"""The keyword that tells flash attention of fewer key heads than query heads; PyTorch 2.11 needs none."""

LONGEST_BMM = 1024
"""Longest sequence for which bfloat16 on CPU multiplies whole score matrices; their memory is quadratic."""


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a packed row lie.

    The fields that only padding needs are computed at their first use, because computing them waits for the GPU.
    """

    starts: Tensor
    """int32 `[sequences + 1]`: first token of each sequence, then the number of tokens."""
    longest: int
    """Tokens of the longest sequence."""

    @cached_property
    def slots(self) -> Tensor:
        """int64 `[tokens]`: index of each token in the padded `[sequences * longest]`."""
        sequences = torch.arange(len(self.starts) - 1, device=self.starts.device)
        return (self._columns + sequences[:, None] * self.longest)[self._real]

    @cached_property
    def sources(self) -> Tensor:
        """int64 `[sequences * longest]`: the token at each padded index; padding repeats token 0, which nothing
        reads."""
        return torch.where(self._real, self._columns + self.starts[:-1, None].long(), 0).flatten()

    @property
    def even(self) -> bool:
        """Whether all sequences are equally long, so that padding is only a change of shape."""
        return len(self.slots) == (len(self.starts) - 1) * self.longest

    @property
    def _columns(self) -> Tensor:
        return torch.arange(self.longest, device=self.starts.device)

    @property
    def _real(self) -> Tensor:
        """bool `[sequences, longest]`: True at tokens, False at padding."""
        return self._columns < self.starts.long().diff()[:, None]


class _Rows(torch.autograd.Function):
    """`source[take]` whose gradient is a copy, not a sum: `put` says where each row of `source` went (at most once)."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, take: Tensor, put: Tensor) -> Tensor:
        ctx.save_for_backward(put)
        return source.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (put,) = ctx.saved_tensors
        return gradient.index_select(0, put), None, None


class _Unpadded(torch.autograd.Function):
    """`padded[slots]`, with zeros as the gradient of the padding."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(slots)
        ctx.rows = len(padded)
        return padded.index_select(0, slots)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.rows, *gradient.shape[1:]).index_copy_(0, slots, gradient), None


def _pad(packed: Tensor, layout: Layout) -> Tensor:
    """Pad: `[1, heads, tokens, dim]` → `[sequences, heads, longest, dim]`."""
    rows = packed[0].transpose(0, 1)
    if not layout.even:
        rows = _Rows.apply(rows, layout.sources, layout.slots)
    return rows.unflatten(0, (-1, layout.longest)).transpose(1, 2)


def _unpad(padded: Tensor, layout: Layout) -> Tensor:
    """Undo `_pad`: `[sequences, heads, longest, dim]` → `[1, tokens, heads, dim]`, as transformers expects it."""
    rows = padded.transpose(1, 2).flatten(0, 1)
    if not layout.even:
        rows = _Unpadded.apply(rows, layout.slots)
    return rows[None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    layout: Layout | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence: `[1, heads, tokens, dim]` → `[1, tokens, heads, dim]`.

    transformers calls it from each layer. Dropout is off whatever the model's configuration says: the ratio of the
    first mini-batch is 1 only without it. `roles.models.scored_attention` has a soft cap and sinks; what else a plain
    causal softmax cannot express is refused.
    """
    _refuse(module, attention_mask, layout, others)
    assert layout is not None
    window = sliding_window if sliding_window is not None and sliding_window < layout.longest else None
    scored = {"softcap": others.get("softcap"), "sinks": others.get("s_aux")}
    plain = all(value is None for value in scored.values())
    if plain and query.is_cuda and query.dtype != torch.float32:
        return _flash(query, key, value, scaling, window, layout), None
    query, key, value = _pad(query, layout), _pad(key, layout), _pad(value, layout)
    if not plain:
        return _unpad(scored_attention(query, key, value, scaling, window, **scored), layout), None
    dense = _bmm if query.dtype == torch.bfloat16 and layout.longest <= LONGEST_BMM else _sdpa
    return _unpad(dense(query, key, value, scaling, window), layout), None


def _refuse(module: nn.Module, attention_mask: Tensor | None, layout: Any, others: Mapping[str, Any]) -> None:
    if layout is None or attention_mask is not None:
        raise ModelError(
            f"{type(module).__name__} does not pass packed sequences on to transformers' attention interface; "
            "use an architecture that does (Llama, Qwen, Mistral, GPT-NeoX, GPT-2, …)"
        )
    if others.get("position_bias") is not None:
        raise ModelError(
            f"{type(module).__name__} uses position_bias in its attention, which packed attention has not; use another "
            "architecture"
        )


def _flash(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None, layout: Layout
) -> Tensor:
    """PyTorch's variable-length flash attention; half precision on GPUs. A window counts the token itself."""
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        layout.starts,
        layout.starts,
        layout.longest,
        layout.longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        **(SHARED_HEADS if query.shape[1] != key.shape[1] else {}),
    )
    assert isinstance(output, Tensor)  # varlen_attn returns a tuple only if the log-sum-exp is asked for
    return output[None]


def _sdpa(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """Causal attention of padded `[sequences, heads, longest, dim]`; `key` and `value` may have fewer heads."""
    mask = None if window is None else _seen(query.shape[2], window, query.device)
    grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=grouped
    )


def _bmm(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """As `_sdpa`, with whole score matrices: in bfloat16 on CPU 2 to 5 times as fast as PyTorch's flash kernel."""
    sequences, heads, longest, dim = query.shape
    key_heads = key.shape[1]
    group = heads // key_heads
    rows = query.unflatten(1, (key_heads, group)).reshape(sequences * key_heads, group * longest, dim)
    columns = key.reshape(sequences * key_heads, longest, dim)
    unseen = torch.zeros(longest, longest, dtype=query.dtype, device=query.device)
    unseen.masked_fill_(~_seen(longest, window, query.device), float("-inf"))
    scale = dim**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(unseen.repeat(group, 1), rows, columns.transpose(1, 2), alpha=scale)
    output = torch.bmm(scores.softmax(-1), value.reshape(sequences * key_heads, longest, -1))
    return output.view(sequences, heads, longest, -1)


def _seen(longest: int, window: int | None, device: torch.device) -> Tensor:
    """bool `[longest, longest]`: which keys (columns) a query (row) sees."""
    seen = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    return seen if window is None else seen.triu(1 - window)


AttentionInterface.register(IMPLEMENTATION, packed_attention)


def check_architecture(config: PretrainedConfig, *, trust_remote_code: bool = False) -> None:
    """Raise a ModelError if a causal language model of this `config` cannot read packed sequences.

    It is built on the meta device and run once, so this takes seconds and no memory. Architectures that cannot be run
    without numbers pass.
    """
    asked: list[nn.Module] = []

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **others: Any
    ) -> tuple[Tensor, None]:
        _refuse(module, attention_mask, others.pop("layout", None), others)
        asked.append(module)
        return query.new_empty(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionInterface.register(CHECKED, attention)
    text = config.get_text_config()
    name = (config.architectures or [type(config).__name__])[0]
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=CHECKED, dtype=torch.bfloat16, trust_remote_code=trust_remote_code
            )
            pass_on_layout(model)
            ids = torch.zeros(1, 8, dtype=torch.long)
            model.eval()(input_ids=ids, position_ids=ids, layout=True, use_cache=False)
    except ModelError:
        raise
    except KeyError as error:
        if error.args != (CHECKED,):
            return
        asked.clear()
    except Exception:  # some models read values, which meta tensors lack; that says nothing about attention
        return
    if len(asked) < text.num_hidden_layers:
        raise ModelError(
            f"{text.num_hidden_layers - len(asked)} of the {text.num_hidden_layers} layers of this {name} do not use "
            "transformers' attention interface, so that packed sequences would run into each other; use an "
            "architecture that does (Llama, Qwen, Mistral, GPT-NeoX, GPT-2, …)"
        )
