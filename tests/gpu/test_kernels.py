"""Attention over packed sequences and the head in blocks on a card, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from roles.models import scoring_head as head
from roles.models.attention import Layout, _pad, _sdpa, _unpad, packed_attention
from roles.models.early_end import Forbidden

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(60)]

BFLOAT16 = 6e-3
"""Relative error (L2) that rounding to 8 bits leaves: 2 to 4e-3 were measured on an H100."""


def error(found: Tensor, true: Tensor) -> float:
    """‖found - true‖ / ‖true‖."""
    found, true = found.detach().double(), true.detach().double()
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize(
    ("heads", "key_heads", "dim", "window"), [(9, 3, 64, None), (32, 8, 128, None), (16, 16, 64, 5), (4, 2, 32, 100)]
)
def test_flash_attention_is_a_causal_softmax_in_each_sequence(
    heads: int, key_heads: int, dim: int, window: int | None
) -> None:
    torch.manual_seed(0)
    lengths = torch.tensor([7, 33, 1, 128, 64])
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int().cuda()
    tokens, layout = int(lengths.sum()), Layout(starts, 128)
    inputs = [
        torch.randn(1, tokens, n, dim, device="cuda", dtype=torch.bfloat16).transpose(1, 2).requires_grad_()
        for n in (heads, key_heads, key_heads)
    ]
    weight = torch.randn(1, tokens, heads, dim, device="cuda")
    out, _ = packed_attention(nn.Module(), *inputs, None, sliding_window=window, layout=layout)
    gradients = torch.autograd.grad((out.float() * weight).sum(), inputs)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    true = _unpad(_sdpa(*(_pad(x, layout) for x in exact), None, window), layout)
    assert error(out, true) < BFLOAT16
    for found, wanted in zip(gradients, torch.autograd.grad((true * weight).sum(), exact), strict=True):
        assert error(found, wanted) < BFLOAT16


@pytest.mark.parametrize("block", [1 << 18, head.CARD_BLOCK])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "bias", "with_entropy"), [(512, False, True), (512, True, False), (1, True, True)])
def test_the_head_in_blocks_is_that_of_whole_logits(
    block: int, dtype: torch.dtype, rows: int, bias: bool, with_entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a token that is forbidden in some rows, and a last block of one column."""
    monkeypatch.setattr(head, "CARD_BLOCK", block)
    torch.manual_seed(0)
    linear = nn.Linear(576, 49153, bias=bias, device="cuda", dtype=dtype)
    hidden = torch.randn(rows, 576, device="cuda", dtype=dtype, requires_grad=True)
    labels = torch.randint(8, 49153, (rows,), device="cuda")
    forbidden = Forbidden(torch.arange(rows, device="cuda") < rows // 2, (7,))
    logprobs, entropy = head.ScoringHead(linear)(hidden, labels, 0.7, with_entropy, forbidden)
    weights = [p for p in (linear.weight, linear.bias) if p is not None]
    gradients = torch.autograd.grad(logprobs.sum() + with_entropy * entropy.sum(), (hidden, *weights))
    exact = [x.detach().double().requires_grad_() for x in (hidden, *weights)]
    logits = (exact[0] @ exact[1].T + (exact[2] if bias else 0)) / 0.7
    table = torch.log_softmax(forbidden.drop(logits.clone()), -1)
    picked, true_entropy = table.gather(1, labels[:, None])[:, 0], -(table.exp() * table.clamp(min=-1e9)).sum(-1)
    assert error(logprobs, picked) < 1e-3 and (not with_entropy or error(entropy, true_entropy) < 1e-3)
    wanted = torch.autograd.grad(picked.sum() + with_entropy * true_entropy.sum(), exact)
    assert all(error(found, true) < BFLOAT16 for found, true in zip(gradients, wanted, strict=True))
