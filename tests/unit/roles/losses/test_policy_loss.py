"""`roles.losses.policy_loss` against naive loops, and the properties the engines rely on."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import roles.losses.logprobs
from roles.losses.logprobs import entropy, token_logprobs
from roles.losses.means import denominator, masked_mean_weight
from roles.losses.policy_loss import POLICY_LOSSES, approx_kl, cispo_loss, gspo_loss, policy_loss
from roles.losses.preference_loss import bradley_terry
from roles.losses.value_loss import value_loss
from roles.packing import balance, micro_batches


@pytest.fixture(params=[1 << 22, 64], ids=["one chunk", "many chunks"])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles.losses.logprobs, "CHUNK", request.param)


def tokens(seed: int, rows: int = 6, time: int = 9) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, time + 1, (rows,), generator=generator)
    mask = (torch.arange(time) < lengths[:, None]) & (torch.rand(rows, time, generator=generator) < 0.8)

    def numbers(scale: float = 1.0) -> Tensor:
        return torch.randn(rows, time, generator=generator) * scale

    return {"mask": mask, "old": numbers() - 2, "shift": numbers(0.5), "advantages": numbers(), "values": numbers()}


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_against_softmax(temperature: float) -> None:
    logits = torch.randn(13, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(13) % 11
    probabilities = (logits / temperature).softmax(-1)
    torch.testing.assert_close(
        token_logprobs(logits, labels, temperature), probabilities[torch.arange(13), labels].log()
    )
    torch.testing.assert_close(entropy(logits, temperature), -(probabilities * probabilities.log()).sum(-1))


@pytest.mark.usefixtures("chunk")
def test_gradients_of_logprobs_and_entropy() -> None:
    logits = torch.randn(13, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    labels = torch.arange(13) % 11
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, labels, 0.7), logits)
    assert torch.autograd.gradcheck(lambda x: entropy(x, 0.7), logits)


def test_half_precision_logits_give_float32_numbers_and_half_gradients() -> None:
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(2)).bfloat16().requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 4])
    logprobs, entropies = token_logprobs(logits, labels, 1.0), entropy(logits, 1.0)
    assert logprobs.dtype == entropies.dtype == torch.float32
    torch.testing.assert_close(logprobs, logits.detach().float().log_softmax(-1)[torch.arange(5), labels])
    (logprobs.sum() + entropies.sum()).backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


def test_a_forbidden_token_does_not_make_nan() -> None:
    logits = torch.tensor([[-math.inf, 0.0, 1.0], [0.0, -math.inf, 1.0]], requires_grad=True)
    out = entropy(logits, 1.0).sum() + token_logprobs(logits, torch.tensor([1, 2]), 1.0).sum()
    out.backward()
    assert math.isfinite(out.item())
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert entropy(torch.zeros(1, 8), 1.0).item() == pytest.approx(math.log(8))


def test_nothing_to_score() -> None:
    logits = torch.zeros(0, 7, requires_grad=True)
    token_logprobs(logits, torch.zeros(0, dtype=torch.int64), 1.0).sum().backward()
    assert entropy(logits, 1.0).shape == (0,)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean", ["token", "sequence"])
def test_the_weighted_mean_against_a_loop(seed: int, mean: str) -> None:
    given = tokens(seed)
    loss, mask = given["advantages"], given["mask"]
    rows = [[float(x) for x, valid in zip(r, m, strict=True) if valid] for r, m in zip(loss, mask, strict=True)]
    rows = [row for row in rows if row]
    if mean == "token":
        expected = sum(sum(row) for row in rows) / sum(len(row) for row in rows)
    else:
        expected = sum(sum(row) / len(row) for row in rows) / len(rows)
    ours = (loss * masked_mean_weight(mask, mean)).sum() / denominator(mask, mean)
    assert ours.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("mean", ["token", "sequence"])
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_the_gradient_depends_on_neither_ranks_nor_micro_batches(mean: str, ranks: int, budget: int) -> None:
    """The sum over ranks and micro-batches of `sum(loss * weight) / whole denominator` is the loss of the whole."""
    given = tokens(3, rows=8)
    mask = given["mask"]

    def slope(parts: list[list[int]]) -> Tensor:
        new = (given["old"] + given["shift"]).requires_grad_()
        loss, _ = policy_loss(new, given["old"], given["advantages"], clip_low=0.2, clip_high=0.3)
        for rows in parts:
            part = (loss[rows] * masked_mean_weight(mask[rows], mean)).sum() / denominator(mask, mean)
            part.backward(retain_graph=True)
        assert new.grad is not None
        return new.grad

    lengths = mask.sum(1).tolist()
    parts = [
        [share[row] for row in rows]
        for share in balance(lengths, ranks)
        for rows in micro_batches([lengths[row] for row in share], budget, at_least=3)
    ]
    torch.testing.assert_close(slope(parts), slope([list(range(8))]), atol=1e-7, rtol=1e-6)


def test_the_constant_mean_divides_token_sums_by_the_constant_and_the_sequences() -> None:
    given = tokens(1)
    loss, mask = given["advantages"], given["mask"]
    rows = [sum(float(x) for x, valid in zip(r, m, strict=True) if valid) for r, m in zip(loss, mask, strict=True)]
    ours = (loss * masked_mean_weight(mask, "constant", 7)).sum() / denominator(mask, "constant")
    assert ours.item() == pytest.approx(sum(rows) / 7 / int(mask.any(1).sum()), abs=1e-6)


def flat(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """New and old log-probabilities, advantages (one a sequence) and sequence numbers of the trained tokens."""
    given = tokens(seed)
    row, column = given["mask"].nonzero(as_tuple=True)
    old = given["old"][row, column].double()
    new = (old + 0.1 * given["shift"][row, column]).requires_grad_()
    return new, old, given["advantages"][row, 0].double(), row


@pytest.mark.parametrize("seed", range(4))
def test_gspo_against_its_sequence_level_definition(seed: int) -> None:
    """Equation 5 of the paper: (1/sequences)·Σ min(s·A, clip(s)·A), s = exp(mean of the log ratios)."""
    new, old, advantages, rows = flat(seed)
    loss, clipped = gspo_loss(new, old, advantages, clip_low=0.01, clip_high=0.02, sequences=rows)
    count = rows.bincount()[rows]
    (slope,) = torch.autograd.grad((loss / count).sum(), new)
    wanted = torch.zeros(())
    for row in rows.unique():
        own = rows == row
        ratio = (new[own] - old[own]).mean().exp()
        gain = advantages[own][0]
        wanted = wanted - torch.minimum(ratio * gain, ratio.clamp(0.99, 1.02) * gain)
        outside = (ratio > 1.02 and gain > 0) or (ratio < 0.99 and gain < 0)
        assert clipped[own].tolist() == [bool(outside)] * int(own.sum())
    torch.testing.assert_close((loss / count).sum(), wanted, check_dtype=False)
    torch.testing.assert_close(slope, torch.autograd.grad(wanted, new)[0])


def test_cispo_weights_the_log_probability_and_never_silences_a_token() -> None:
    new, old, advantages, _ = flat(0)
    loss, held = cispo_loss(new, old, advantages, clip_low=0.02, clip_high=0.03)
    (slope,) = torch.autograd.grad(loss.sum(), new)
    ratio = (new - old).exp().detach()
    torch.testing.assert_close(slope, -advantages * ratio.clamp(0.98, 1.03))
    assert held.tolist() == [bool(r < 0.98 or r > 1.03) for r in ratio] and held.any()
    assert (slope != 0).all()


def test_on_the_first_mini_batch_all_policy_losses_have_the_same_gradient() -> None:
    _, old, advantages, rows = flat(2)
    slopes = []
    for loss in POLICY_LOSSES.values():
        new = old.clone().requires_grad_()
        losses, _ = loss(new, old, advantages, clip_low=0.2, clip_high=0.2, dual_clip=None, sequences=rows)
        slopes.append(torch.autograd.grad(losses.sum(), new)[0])
    for slope in slopes:
        torch.testing.assert_close(slope, -advantages)


def test_an_empty_mask_has_no_weight_and_no_denominator() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    for mean in ("token", "sequence"):
        assert masked_mean_weight(mask, mean).tolist() == [[0, 0, 0], [0, 0, 0]]
        assert denominator(mask, mean) == 0.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dual_clip", [None, 2.0])
def test_policy_loss_against_a_loop(seed: int, dual_clip: float | None) -> None:
    given = tokens(seed)
    new = given["old"] + given["shift"]
    loss, clipped = policy_loss(
        new, given["old"], given["advantages"], clip_low=0.1, clip_high=0.3, dual_clip=dual_clip
    )
    for row in range(new.shape[0]):
        for t in range(new.shape[1]):
            ratio = math.exp(new[row, t] - given["old"][row, t])
            gain = float(given["advantages"][row, t])
            gains = (gain * ratio, gain * min(max(ratio, 0.9), 1.3))
            expected = min(gains)
            if dual_clip is not None and gain < 0:
                expected = max(expected, dual_clip * gain)
            assert loss[row, t].item() == pytest.approx(-expected, rel=1e-4, abs=1e-5)
            assert bool(clipped[row, t]) == (gains[1] < gains[0] - 1e-9)


def test_policy_loss_at_ratio_one_is_the_plain_policy_gradient() -> None:
    given = tokens(0)
    new = given["old"].clone().requires_grad_()
    loss, clipped = policy_loss(new, given["old"], given["advantages"], clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert not clipped.any()
    torch.testing.assert_close(new.grad, -given["advantages"])


def test_clipped_tokens_have_no_gradient() -> None:
    old = torch.zeros(4)
    new = torch.tensor([1.0, -1.0, 1.0, -1.0], requires_grad=True)
    loss, clipped = policy_loss(new, old, torch.tensor([1.0, -1.0, -1.0, 1.0]), clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert clipped.tolist() == [True, True, False, False]
    assert new.grad is not None
    assert (new.grad == 0).tolist() == [True, True, False, False]


def test_a_ratio_out_of_range_stays_finite() -> None:
    new = torch.tensor([200.0], requires_grad=True)
    loss, _ = policy_loss(new, torch.zeros(1), torch.zeros(1), clip_low=0.2, clip_high=0.2)
    loss.sum().backward()
    assert loss.item() == 0.0
    assert new.grad is not None
    assert new.grad.isfinite().all()


@pytest.mark.parametrize("clip", [None, 0.3])
def test_value_loss_against_a_loop(clip: float | None) -> None:
    given = tokens(4)
    old, returns = given["values"], given["advantages"]
    new = old + given["shift"]
    loss, clipped = value_loss(new, old, returns, clip)
    for row in range(new.shape[0]):
        for t in range(new.shape[1]):
            v, o, r = (float(x[row, t]) for x in (new, old, returns))
            plain = (v - r) ** 2
            bounded = plain if clip is None else (min(max(v, o - clip), o + clip) - r) ** 2
            assert loss[row, t].item() == pytest.approx(0.5 * max(plain, bounded), rel=1e-4, abs=1e-6)
            assert bool(clipped[row, t]) == (bounded > plain + 1e-7)


def test_approx_kl_is_zero_at_home_and_never_negative() -> None:
    given = tokens(5)
    assert approx_kl(given["old"], given["old"]).abs().max() == 0
    assert approx_kl(given["old"] + given["shift"], given["old"]).min() >= 0
    ratio = math.exp(0.5)
    assert approx_kl(torch.tensor(0.5), torch.tensor(0.0)).item() == pytest.approx(ratio - 1 - 0.5)


def test_bradley_terry_with_a_soft_label_is_least_where_the_model_gives_its_probability() -> None:
    chosen, certainty = torch.tensor([0.3, -0.7], requires_grad=True), torch.tensor([0.9, 1.0])
    loss = bradley_terry(chosen, torch.zeros(2), certainty=certainty)
    right = torch.sigmoid(chosen)
    assert torch.allclose(loss, -certainty * right.log() - (1 - certainty) * (1 - right).log())
    loss.sum().backward()
    assert chosen.grad is not None and torch.allclose(chosen.grad, right - certainty)
    assert loss[1] == bradley_terry(chosen, torch.zeros(2))[1]


def test_bradley_terry_is_stable_and_takes_a_margin() -> None:
    loss = bradley_terry(torch.tensor([0.0, 1000.0, -1000.0]), torch.zeros(3))
    assert loss.tolist() == pytest.approx([math.log(2), 0.0, 1000.0])
    assert bradley_terry(torch.tensor(1.0), torch.tensor(0.0), 1.0).item() == pytest.approx(math.log(2))
