"""Attention over packed sequences and the head in blocks on a card, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from roles.models import scoring_head as head
from roles.models.attention import Layout, _pad, _sdpa, _unpad, packed_attention

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
def test_the_head_in_blocks_is_that_of_whole_logits(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CARD_BLOCK", block)
    torch.manual_seed(0)
    linear = nn.Linear(576, 49152, bias=False, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(512, 576, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 49152, (512,), device="cuda")
    logprobs, entropy = head.ScoringHead(linear)(hidden, labels, 0.7, True)
    gradients = torch.autograd.grad(logprobs.sum() + entropy.sum(), (hidden, linear.weight))
    exact = [hidden.detach().double().requires_grad_(), linear.weight.detach().double().requires_grad_()]
    table = torch.log_softmax(exact[0] @ exact[1].T / 0.7, -1)
    picked, true_entropy = table.gather(1, labels[:, None])[:, 0], -(table.exp() * table).sum(-1)
    assert error(logprobs, picked) < 1e-3 and error(entropy, true_entropy) < 1e-3
    wanted = torch.autograd.grad(picked.sum() + true_entropy.sum(), exact)
    assert all(error(found, true) < BFLOAT16 for found, true in zip(gradients, wanted, strict=True))
