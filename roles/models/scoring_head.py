"""A language model's head that scores tokens without ever holding `[tokens, vocabulary]`: log-probability and entropy.

Hidden states flow in, float32 numbers flow out, with gradients for hidden states and weights. The vocabulary is
processed in blocks, forward and again backward (Milakov and Gimelshein's online softmax, arXiv 1805.02867; the backward
pass recomputes each block as in Wijmans et al., arXiv 2411.09009). The module replaces a model's own head, so that
ZeRO-3 gathers its weight around one call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import MoeModelOutputWithPast

from roles.losses.logprobs import finite_logprobs
from roles.models.early_end import Forbidden

Computation = TypeVar("Computation", bound=Callable[..., Any])

BLOCK, CARD_BLOCK = 1 << 22, 1 << 25
"""Logits held at a time. On CPU 16 MiB in float32, which fits a processor's cache; on a GPU 128 MiB, since more
takes memory and is hardly faster (H100, 4096 tokens, 2048 x 128256, milliseconds: 2^22 122, 2^24 39, 2^26 33, 2^28
32)."""
NARROWEST = 64
"""Fewest columns of logits held at a time, even if that is more than `BLOCK`: narrower products are slow. On a GPU
blocks are multiples of it, because rows that begin at odd addresses get kernels of a third of the speed there."""


class ScoringHead(nn.Module):
    """The linear layer from hidden states to logits; it returns log-probabilities and entropies instead of logits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor,
        temperature: float,
        with_entropy: bool,
        forbidden: Forbidden | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of `labels` (int64 `[n]`) after `hidden` `[n, width]`, and the entropy there.

        Both are float32 `[n]` of softmax(logits / temperature) without the tokens that are `forbidden`; without
        `with_entropy` the second is all 0. Logits have the weight's dtype, as the linear layer would give them, and are
        widened block by block.
        """
        out: tuple[Tensor, Tensor] = _Scores.apply(
            hidden, self.weight, self.bias, labels, temperature, with_entropy, forbidden
        )
        return out


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        temperature: float,
        with_entropy: bool,
        forbidden: Forbidden | None = None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.temperature, ctx.forbidden = temperature, forbidden
        wide = torch.promote_types(hidden.dtype, torch.float32)
        picked = torch.zeros(len(hidden), dtype=wide, device=hidden.device)
        largest = torch.full_like(picked, torch.finfo(wide).min)
        total, weighted = torch.zeros_like(picked), torch.zeros_like(picked)  # Σ eᶻ and Σ eᶻ·z; z = logit - largest
        add = _on_card(_add_block) if hidden.is_cuda else _add_block
        for columns in _blocks(hidden, weight):
            logits = _logits(hidden, weight, bias, columns, forbidden)
            sums = (picked, largest, total, weighted)
            picked, largest, total, weighted = add(
                logits, *_labels_in(columns, labels), temperature, *sums, with_entropy
            )
        normaliser = largest + total.log()
        entropy = total.log() - weighted / total if with_entropy else weighted
        ctx.save_for_backward(hidden, weight, bias, labels, normaliser, entropy)
        return picked - normaliser, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, for_logprobs: Tensor | None, for_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """d log p(label) / d logit_j = (1[j = label] - p_j) / temperature; d H / d logit_j = -p_j (log p_j + H) /
        temperature."""
        hidden, weight, bias, labels, normaliser, entropy = ctx.saved_tensors
        wanted_hidden, wanted_weight, wanted_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.zeros(hidden.shape, dtype=normaliser.dtype, device=hidden.device) if wanted_hidden else None
        to_weight = torch.empty_like(weight) if wanted_weight else None
        to_bias = torch.empty_like(bias) if wanted_bias else None
        gain = torch.zeros_like(normaliser) if for_logprobs is None else for_logprobs / ctx.temperature
        slope_of = _on_card(_slope) if hidden.is_cuda else _slope
        for columns in _blocks(hidden, weight):
            logits = _logits(hidden, weight, bias, columns, ctx.forbidden)
            where = _labels_in(columns, labels)
            slope = slope_of(logits, *where, ctx.temperature, normaliser, gain, entropy.detach(), for_entropy)
            if to_hidden is not None:
                to_hidden += slope @ weight[columns]
            if to_weight is not None:
                torch.mm(slope.T, hidden, out=to_weight[columns])
            if to_bias is not None:
                to_bias[columns] = slope.sum(0)
        return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, to_bias, *[None] * 4


@cache
def _on_card(function: Computation) -> Computation:
    """Compiled to a few kernels that pass over a block of logits once, for any number of rows and columns."""
    return cast(Computation, torch.compile(function, dynamic=True))


@cache
def compile_head(dtype: torch.dtype, *, trained: bool, device: str = "cuda") -> None:
    """Compile what a head with logits of `dtype` runs on this process's GPU. The first call settles in which order a
    kernel adds: were it a micro-batch, a resumed run would round otherwise than one that was never interrupted."""
    rows, columns = 4096, CARD_BLOCK // 4096
    logits = torch.zeros(rows, columns, dtype=dtype, device=device)
    # Four tensors of their own: kernels for one that is given four times, or for views, would not be taken for others.
    wide = torch.promote_types(dtype, torch.float32)
    numbers = [torch.zeros(rows, dtype=wide, device=device) for _ in range(4)]
    where = numbers[0] > 0, numbers[0].long()
    with torch.no_grad():
        _on_card(_add_block)(logits, *where, 1.0, *numbers, False)
        if trained:
            _on_card(_add_block)(logits, *where, 1.0, *numbers, True)
            _on_card(_slope)(logits, *where, 1.0, *numbers[:3], None)
            _on_card(_slope)(logits, *where, 1.0, *numbers)


def _blocks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Slices of the rows of the weight, which are columns of the logits."""
    block, multiple = (CARD_BLOCK, NARROWEST) if hidden.is_cuda else (BLOCK, 1)
    width = max(block // max(len(hidden), 1), NARROWEST) // multiple * multiple
    return [slice(first, min(first + width, len(weight))) for first in range(0, len(weight), width)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, columns: slice, forbidden: Forbidden | None) -> Tensor:
    """Logits `[n, columns]` in the weight's dtype, in new memory; -inf for a forbidden token."""
    logits = F.linear(hidden, weight[columns], None if bias is None else bias[columns])
    return forbidden.drop(logits, columns.start) if forbidden else logits


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Divided by the temperature, at least float32, perhaps in the same memory."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).div_(temperature)


def _add_block(
    logits: Tensor,
    inside: Tensor,
    here: Tensor,
    temperature: float,
    picked: Tensor,
    largest: Tensor,
    total: Tensor,
    weighted: Tensor,
    with_entropy: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last four tensors with a block of logits added; may overwrite `logits`. All are `[n]`: the label's logit, the
    largest one, Σ eᶻ and Σ eᶻ·z with z = logit - largest."""
    scaled = _scaled(logits, temperature)
    picked = picked + torch.where(inside, scaled.gather(-1, here[:, None])[:, 0], 0)
    risen = torch.maximum(largest, scaled.amax(-1))
    shift = largest - risen
    scaled.sub_(risen[:, None])
    if with_entropy:
        powers = finite_logprobs(scaled).exp()
        weighted = shift.exp() * (weighted + shift * total) + torch.linalg.vecdot(powers, scaled)
    else:
        powers = scaled.exp_()
    return picked, risen, shift.exp() * total + powers.sum(-1), weighted


def _slope(
    logits: Tensor,
    inside: Tensor,
    here: Tensor,
    temperature: float,
    normaliser: Tensor,
    gain: Tensor,
    entropy: Tensor,
    for_entropy: Tensor | None,
) -> Tensor:
    """Gradient of a block of logits, in their dtype; may overwrite `logits`. `gain`, the gradient of the
    log-probabilities, is divided by the temperature already."""
    logprobs = _scaled(logits, temperature).sub_(normaliser[:, None])
    if for_entropy is None:
        slope = logprobs.exp_().mul_(-gain[:, None])
    else:
        powers = finite_logprobs(logprobs).exp()
        # p_j · (…) first, which is 0 where p_j is 0: the lowest finite number times another factor may be infinite.
        slope = logprobs.add_(entropy[:, None]).mul_(powers).mul_(-(for_entropy / temperature)[:, None])
        slope -= powers.mul_(gain[:, None])
    at_label = slope.gather(-1, here[:, None]) + torch.where(inside, gain, 0)[:, None]
    return slope.to(logits.dtype).scatter_(-1, here[:, None], at_label.to(logits.dtype))


def _labels_in(columns: slice, labels: Tensor) -> tuple[Tensor, Tensor]:
    """bool `[n]`: whether the label is in the block; int64 `[n]`: its column there (0 for the others)."""
    inside = (labels >= columns.start) & (labels < columns.stop)
    return inside, torch.where(inside, labels - columns.start, 0)


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether `model`'s logits are what its head makes of the last hidden states, and nothing else.

    Some architectures scale or cap them afterwards. Asked of the model's own forward pass, with stand-ins for the
    layers and the head, so that no weight is touched.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    backbone, given = model.base_model, _Noted(torch.full((1, 1, 2), 50.0))
    try:
        setattr(model, model.base_model_prefix, _Layers())
        model.set_output_embeddings(given)
        logits = model(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=False).logits
    except Exception:  # any exception: its forward pass asks the stand-ins for something that they do not have
        return False
    finally:
        setattr(model, model.base_model_prefix, backbone)
        model.set_output_embeddings(head)
    return torch.equal(logits, given.answer) and given.asked is not None and torch.equal(given.asked, _Layers.STATES)


class _Layers(nn.Module):
    """Stand-in for a model's layers."""

    STATES = torch.full((1, 1, 2), 7.0)

    def forward(self, *args: Any, **kwargs: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=self.STATES)


class _Noted(nn.Module):
    """Stand-in for a head that records its inputs."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer
        self.asked: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        self.asked = hidden
        return self.answer
