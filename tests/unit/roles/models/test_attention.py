"""Packed attention against PyTorch's attention of each sequence alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from roles.errors import ModelError
from roles.models.attention import LONGEST_BMM, Layout, packed_attention

LENGTHS = {"ragged": [5, 1, 9, 3], "even": [6, 6, 6], "one": [7]}


def layout_of(lengths: list[int]) -> Layout:
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return Layout(starts, max(lengths))


def tensors(lengths: list[int], heads: int, key_heads: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, count, sum(lengths), 8) for count in (heads, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def one_by_one(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], window: int | None) -> Tensor:
    """`[1, tokens, heads, dim]`: the definition, without packing, with an explicit mask."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    parts = []
    for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True):
        ahead = torch.arange(q.shape[2])[:, None] - torch.arange(q.shape[2])
        seen = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen))
    return torch.cat(parts, 2).transpose(1, 2)


def test_layout_says_where_each_token_goes_and_comes_from() -> None:
    layout = layout_of([2, 1, 3])
    assert layout.slots.tolist() == [0, 1, 3, 6, 7, 8]
    assert layout.sources.tolist() == [0, 1, 0, 2, 0, 0, 3, 4, 5]
    assert not layout.even
    assert layout_of([4, 4]).even


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_equals_attention_of_each_sequence_alone(
    lengths: list[int], heads: int, key_heads: int, window: int | None
) -> None:
    parts = tensors(lengths, heads, key_heads)
    output, weights = packed_attention(nn.Identity(), *parts, None, sliding_window=window, layout=layout_of(lengths))
    expected = one_by_one(*parts, lengths, window)
    assert weights is None
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=1e-5)
    weight = torch.randn_like(output)
    got, wanted = (torch.autograd.grad((out * weight).sum(), parts) for out in (output, expected))
    for gradient, reference in zip(got, wanted, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("lengths", [[5, 1, 9, 3], [LONGEST_BMM + 1]], ids=["short", "long"])
def test_bfloat16_agrees_with_float32(lengths: list[int], heads: int, key_heads: int, window: int | None) -> None:
    parts = tensors(lengths, heads, key_heads, torch.bfloat16)
    output, _ = packed_attention(nn.Identity(), *parts, None, sliding_window=window, layout=layout_of(lengths))
    wide = [part.detach().float().requires_grad_() for part in parts]
    expected = one_by_one(*wide, lengths, window)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.03, rtol=0.03)
    got, wanted = torch.autograd.grad(output.float().sum(), parts), torch.autograd.grad(expected.sum(), wide)
    for gradient, reference in zip(got, wanted, strict=True):
        assert (gradient.float() - reference).norm() <= 0.03 * reference.norm().clamp(min=1.0)


def test_scaling_is_the_models_own() -> None:
    parts = tensors([4, 2], 2, 2)
    doubled, _ = packed_attention(nn.Identity(), *parts, None, scaling=2 * 8**-0.5, layout=layout_of([4, 2]))
    expected = one_by_one(2 * parts[0], parts[1], parts[2], [4, 2], None)
    torch.testing.assert_close(doubled, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("mask", "others", "named"),
    [
        (None, {"layout": None}, "does not pass"),
        (torch.ones(1, 1, 6, 6), {"layout": layout_of([4, 2])}, "does not pass"),
        (None, {"layout": layout_of([4, 2]), "position_bias": torch.zeros(2)}, "position_bias"),
    ],
)
def test_what_it_cannot_do_is_refused(mask: Tensor | None, others: dict[str, object], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        packed_attention(nn.Identity(), *tensors([4, 2], 2, 2), mask, **others)
