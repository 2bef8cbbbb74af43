"""The head that walks the vocabulary in blocks against log_softmax over whole logits."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from roles.models import scoring_head as head
from roles.models.early_end import Forbidden
from roles.models.scoring_head import ScoringHead, has_plain_head
from tests.unit.roles.models.test_networks import GROUPED, Shapes

TOKENS, WIDTH, VOCABULARY = 13, 8, 50


@pytest.fixture(params=[50, 16, 7], ids=["one block", "even blocks and a rest", "small blocks"], autouse=True)
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(head, "BLOCK", 1)
    monkeypatch.setattr(head, "NARROWEST", request.param)
    return int(request.param)


def layer(dtype: torch.dtype = torch.float32, bias: bool = False) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, VOCABULARY, bias=bias)
    nn.init.normal_(linear.weight)
    return linear.to(dtype)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw).to(dtype).requires_grad_()
    return hidden, torch.randint(0, VOCABULARY, (TOKENS,), generator=draw)


def plain(linear: nn.Linear, hidden: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    every = (linear(hidden).float() / temperature).log_softmax(-1)
    return every.gather(-1, labels[:, None])[:, 0], -(every.exp() * every).sum(-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_and_gradients_are_those_of_whole_logits(dtype: torch.dtype, temperature: float, bias: bool) -> None:
    linear = layer(dtype, bias)
    weights = torch.randn(2, TOKENS, generator=torch.Generator().manual_seed(2))

    def slopes(scores: tuple[Tensor, Tensor], hidden: Tensor) -> list[Tensor]:
        loss = (scores[0] * weights[0]).sum() + (scores[1] * weights[1]).sum()
        return list(torch.autograd.grad(loss, [hidden, *linear.parameters()]))

    hidden, labels = inputs(dtype)
    ours = ScoringHead(linear)(hidden, labels, temperature, True)
    wanted = plain(linear, hidden, labels, temperature)
    for got, expected in zip(ours, wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for got, expected in zip(slopes(ours, hidden), slopes(wanted, hidden), strict=True):
        assert got.dtype == dtype
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.05, "rtol": 0.02}
        torch.testing.assert_close(got, expected, **tolerance)


def test_each_answer_alone_has_its_gradient() -> None:
    linear = layer()
    for which in (0, 1):
        hidden, labels = inputs()
        got = torch.autograd.grad(ScoringHead(linear)(hidden, labels, 0.7, True)[which].sum(), hidden)[0]
        expected = torch.autograd.grad(plain(linear, hidden, labels, 0.7)[which].sum(), hidden)[0]
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_gradients_to_the_last_digit() -> None:
    scoring = ScoringHead(layer(torch.float64, bias=True))
    hidden, labels = inputs(torch.float64)

    def scores(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return head._Scores.apply(hidden, weight, bias, labels, 0.7, True)

    assert torch.autograd.gradcheck(scores, (hidden, scoring.weight, scoring.bias))


def test_frozen_weights_get_no_gradient() -> None:
    scoring = ScoringHead(layer()).requires_grad_(False)
    hidden, labels = inputs()
    scoring(hidden, labels, 1.0, False)[0].sum().backward()
    assert hidden.grad is not None and hidden.grad.any()
    assert scoring.weight.grad is None


def test_a_forbidden_token_does_not_make_nan() -> None:
    linear = layer(bias=True)
    linear.bias.data[3] = -math.inf
    hidden, labels = inputs()
    labels[labels == 3] = 4
    logprobs, entropy = ScoringHead(linear)(hidden, labels, 1.0, True)
    (logprobs.sum() + entropy.sum()).backward()
    assert logprobs.isfinite().all() and entropy.isfinite().all()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [(3,), (0, 17, 49)])
def test_without_forbidden_tokens_the_others_add_up_to_one(tokens: tuple[int, ...], bias: bool) -> None:
    """Numbers and gradients of log_softmax over logits with -inf, in some rows; also where a block has nothing else."""
    linear, (hidden, labels) = layer(bias=bias), inputs()
    at = torch.arange(TOKENS) % 3 != 1
    labels[at & torch.isin(labels, torch.tensor(tokens))] = 5
    weights = torch.randn(2, TOKENS, generator=torch.Generator().manual_seed(2))
    barred = at[:, None] & torch.isin(torch.arange(VOCABULARY), torch.tensor(tokens))
    every = (linear(hidden) / 0.7).masked_fill(barred, -math.inf).log_softmax(-1)
    finite = every.masked_fill(barred, 0.0)
    wanted = every.gather(-1, labels[:, None])[:, 0], -(finite.exp() * finite).masked_fill(barred, 0.0).sum(-1)
    ours = ScoringHead(linear)(hidden, labels, 0.7, True, Forbidden(at, tokens))
    for got, expected in zip(ours, wanted, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    slopes = [
        torch.autograd.grad((a * weights[0]).sum() + (b * weights[1]).sum(), [hidden, *linear.parameters()])
        for a, b in (ours, wanted)
    ]
    for got, expected in zip(*slopes, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


class OnCard:
    """So many hidden states on a GPU."""

    is_cuda = True

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return self.tokens


@pytest.mark.parametrize("tokens", [1, 13, 999, 1 << 20])
def test_blocks_begin_where_a_gpu_reads_fast(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CARD_BLOCK", 1000 * 64)
    monkeypatch.setattr(head, "NARROWEST", 64)
    hidden: Any = OnCard(tokens)
    blocks = head._blocks(hidden, torch.empty(49152, 1))
    assert [block.start for block in blocks[1:]] == [block.stop for block in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].stop) == (0, 49152)
    widths = {block.stop - block.start for block in blocks}
    assert all(width % 64 == 0 and (width * tokens <= 1000 * 64 or width == 64) for width in widths)


@pytest.mark.parametrize("trained", [True, False])
def test_no_tensor_of_tokens_by_vocabulary_is_made(columns: int, trained: bool) -> None:
    scoring, (hidden, labels) = ScoringHead(layer()).requires_grad_(trained), inputs()
    with Shapes() as shapes:
        logprobs, entropy = scoring(hidden, labels, 1.0, True)
        (logprobs.sum() + entropy.sum()).backward()
    whole = {shape for shape in shapes.seen if math.prod(shape) >= TOKENS * VOCABULARY}
    assert (TOKENS, min(columns, VOCABULARY)) in shapes.seen
    assert bool(whole) == (columns >= VOCABULARY)


def test_saved_under_the_names_of_the_linear_layer() -> None:
    linear = layer(bias=True)
    assert ScoringHead(linear).state_dict().keys() == linear.state_dict().keys()
    hidden, _ = inputs()
    torch.testing.assert_close(F.linear(hidden, ScoringHead(linear).weight, linear.bias), linear(hidden))


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("LlamaConfig", {}, True),
        ("Qwen3MoeConfig", {}, True),
        ("GraniteConfig", {"logits_scaling": 4.0}, False),
        ("CohereConfig", {}, False),
        ("Gemma3TextConfig", {"head_dim": 8, "final_logit_softcapping": 30.0}, False),
    ],
)
def test_only_heads_with_nothing_after_them_are_taken(name: str, changes: dict[str, Any], expected: bool) -> None:
    model = AutoModelForCausalLM.from_config(getattr(transformers, name)(**(GROUPED | changes)))
    before = dict(model.named_modules())
    assert has_plain_head(model) == expected
    assert dict(model.named_modules()) == before


def test_no_micro_batch_compiles_again_what_the_start_has_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its shape, not the fixed one, would settle how kernels add. On a CPU, with a compiler that only counts."""
    graphs = CompileCounter()  # type: ignore[no-untyped-call]
    monkeypatch.setattr(head.torch, "compile", partial(torch.compile, backend=graphs))
    monkeypatch.setattr(head, "CARD_BLOCK", 1 << 16)
    monkeypatch.setattr(head, "NARROWEST", 16)
    torch._dynamo.reset()
    for kept in (head._on_card, head.compile_head):
        kept.cache_clear()
    try:
        head.compile_head(torch.float32, trained=True, device="cpu")
        assert graphs.frame_count == 4
        for name in ("_add_block", "_slope"):
            monkeypatch.setattr(head, name, head._on_card(getattr(head, name)))
        for temperature, with_entropy in ((0.7, True), (1.0, False)):
            linear, (hidden, labels) = layer(), inputs()
            logprobs, entropy = ScoringHead(linear)(hidden, labels, temperature, with_entropy)
            weights = torch.rand(TOKENS)
            ((logprobs * weights).sum() + ((entropy * weights).sum() if with_entropy else 0)).backward()
        assert graphs.frame_count == 4
    finally:
        for kept in (head._on_card, head.compile_head):
            kept.cache_clear()
