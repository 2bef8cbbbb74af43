"""Losses over preferences against their papers, number by number in Python's floats."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from roles.losses.preference_loss import dpo, hinge, ipo, kto, kto_kl, orpo, robust_dpo, simpo

POLICY_CHOSEN, POLICY_REJECTED = [-3.0, -1.5, -7.0, -0.2], [-2.0, -4.0, -6.5, -9.0]
REFERENCE_CHOSEN, REFERENCE_REJECTED = [-3.5, -1.0, -5.0, -3.0], [-2.5, -2.0, -6.5, -4.0]
PAIRS = [POLICY_CHOSEN, POLICY_REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED]
H = [(c - rc) - (r - rr) for c, r, rc, rr in zip(*PAIRS, strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def tensors() -> list[Tensor]:
    return [torch.tensor(values, dtype=torch.float64) for values in PAIRS]


def same(found: Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.4])
def test_dpo_with_labels_that_may_be_wrong(wrong: float) -> None:
    right = [-math.log(sigmoid(0.3 * h)) for h in H]
    swapped = [-math.log(sigmoid(-0.3 * h)) for h in H]
    conservative = [(1 - wrong) * a + wrong * b for a, b in zip(right, swapped, strict=True)]
    robust = [((1 - wrong) * a - wrong * b) / (1 - 2 * wrong) for a, b in zip(right, swapped, strict=True)]
    same(dpo(*tensors(), beta=0.3, label_smoothing=wrong), conservative)
    same(robust_dpo(*tensors(), beta=0.3, label_smoothing=wrong), robust)


def test_the_robust_loss_is_unbiased() -> None:
    """Over labels of which a share ε is swapped, its mean is DPO's loss of the true labels."""
    chosen, rejected, reference_chosen, reference_rejected = tensors()
    kept = robust_dpo(chosen, rejected, reference_chosen, reference_rejected, beta=0.3, label_smoothing=0.2)
    swapped = robust_dpo(rejected, chosen, reference_rejected, reference_chosen, beta=0.3, label_smoothing=0.2)
    torch.testing.assert_close(0.8 * kept + 0.2 * swapped, dpo(*tensors(), beta=0.3))


def test_hinge_and_ipo() -> None:
    same(hinge(*tensors(), beta=0.3), [max(0.0, 1 - 0.3 * h) for h in H])
    assert hinge(*tensors(), beta=0.3).min() == 0
    same(ipo(*tensors(), beta=0.3), [(h - 1 / 0.6) ** 2 for h in H])


def test_simpo_and_orpo() -> None:
    chosen, rejected = tensors()[:2]
    pairs = list(zip(POLICY_CHOSEN, POLICY_REJECTED, strict=True))
    same(
        simpo(chosen, rejected, beta=2.0, target_margin=0.5), [-math.log(sigmoid(2 * (c - r) - 0.5)) for c, r in pairs]
    )

    def odds(logprob: float) -> float:
        return math.exp(logprob) / (1 - math.exp(logprob))

    expected = [-c - 0.25 * math.log(sigmoid(math.log(odds(c) / odds(r)))) for c, r in pairs]
    same(orpo(chosen, rejected, weight=0.25), expected)


def test_orpo_of_certain_and_impossible_responses_is_finite() -> None:
    chosen = torch.tensor([-1e-7, -90.0], requires_grad=True)
    loss = orpo(chosen, torch.tensor([-90.0, -1e-7]), weight=0.1)
    loss.sum().backward()  # type: ignore[no-untyped-call]
    assert chosen.grad is not None and loss.isfinite().all() and chosen.grad.isfinite().all()


def test_kto() -> None:
    desirable, beta, gained, lost = [True, False, False, True], 0.3, 1.2, 0.7
    ratios = [c - rc for c, rc in zip(POLICY_CHOSEN, REFERENCE_CHOSEN, strict=True)]
    other = [r - rr for r, rr in zip(POLICY_REJECTED, REFERENCE_REJECTED, strict=True)]
    z = max(0.0, sum(other) / 4)
    values = [
        gained * sigmoid(beta * (r - z)) if d else lost * sigmoid(beta * (z - r))
        for r, d in zip(ratios, desirable, strict=True)
    ]
    expected = [(gained if d else lost) - value for value, d in zip(values, desirable, strict=True)]
    chosen, rejected, reference_chosen, reference_rejected = tensors()
    kl = kto_kl(rejected, reference_rejected)
    same(kl, z)  # type: ignore[arg-type]
    weights = {"desirable_weight": gained, "undesirable_weight": lost}
    same(kto(chosen, reference_chosen, torch.tensor(desirable), kl, beta=beta, **weights), expected)


def test_kto_s_kl_is_no_less_than_zero_and_has_no_gradient() -> None:
    policy = torch.tensor([-1.0, -2.0], requires_grad=True)
    assert kto_kl(policy, torch.zeros(2)) == 0
    above = kto_kl(policy, torch.tensor([-3.0, -5.0]))
    assert above == 2.5 and not above.requires_grad


@pytest.mark.parametrize(
    "loss",
    [
        lambda h: dpo(h, *torch.zeros(3, *h.shape), beta=0.3),
        lambda h: robust_dpo(h, *torch.zeros(3, *h.shape), beta=0.3, label_smoothing=0.1),
        lambda h: hinge(h, *torch.zeros(3, *h.shape), beta=0.3),
        lambda h: simpo(h, torch.full_like(h, -1.0), beta=2.0, target_margin=0.5),
        lambda h: orpo(h - 3, torch.full_like(h, -1.0), weight=0.3),
        lambda h: kto(h, torch.zeros_like(h), torch.ones_like(h).bool(), torch.zeros(()), beta=0.3),
    ],
    ids=["dpo", "robust", "hinge", "simpo", "orpo", "kto"],
)
def test_a_more_likely_chosen_response_costs_less(loss: Callable[[Tensor], Tensor]) -> None:
    losses = loss(torch.linspace(-2, 2, 9)).tolist()
    assert all(later < earlier for earlier, later in pairwise(losses))
