"""Which loss and rewards a configured loss of the DPO family gives, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from roles.config.preference_losses import SOFT_LABELS, PreferenceLossConfig
from roles.losses.preference_numbers import PreferenceNumbers, judged, preference_losses
from roles.shares import LabelledResponses, PreferencePairs, ReferencedResponses

CHOSEN, REJECTED, REFERENCE_CHOSEN, REFERENCE_REJECTED = -4.0, -9.0, -6.0, -6.0
TOKENS = (2, 3)
H, PER_TOKEN = (-4 + 6) - (-9 + 6), (-4 + 6) / 2 - (-9 + 6) / 3


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def odds(p: float) -> float:
    return p / (1 - p)


RATIO = odds(math.exp(-2)) / odds(math.exp(-3))


def loss_of(**said: Any) -> Any:
    return TypeAdapter(PreferenceLossConfig).validate_python(said)


@pytest.mark.parametrize(
    ("said", "loss", "rewards"),
    [
        ({"type": "sigmoid"}, softplus(-0.1 * H), (0.2, -0.3)),
        (
            {"type": "sigmoid", "beta": 0.5, "label_smoothing": 0.2},
            0.8 * softplus(-0.5 * H) + 0.2 * softplus(0.5 * H),
            (1.0, -1.5),
        ),
        ({"type": "robust"}, (0.9 * softplus(-0.1 * H) - 0.1 * softplus(0.1 * H)) / 0.8, (0.2, -0.3)),
        ({"type": "ipo", "beta": 0.5}, (PER_TOKEN - 1) ** 2, (0.5, -0.5)),
        ({"type": "hinge"}, 1 - 0.1 * H, (0.2, -0.3)),
        ({"type": "simpo", "target_margin": 0.5}, softplus(-(2 * (-2 + 3) - 0.5)), (-4.0, -6.0)),
        ({"type": "orpo", "weight": 0.5}, 2 + 0.5 * softplus(-math.log(RATIO)), (-1.0, -1.5)),
    ],
    ids=lambda said: "-".join(map(str, said.values())) if isinstance(said, dict) else "",
)
def test_the_loss_that_is_configured(said: dict[str, Any], loss: float, rewards: tuple[float, float]) -> None:
    logprobs, reference = torch.tensor([CHOSEN, REJECTED]), torch.tensor([REFERENCE_CHOSEN, REFERENCE_REJECTED])
    losses, found = preference_losses(loss_of(**said), logprobs, reference, torch.tensor(TOKENS))
    assert losses.tolist() == pytest.approx([loss], rel=1e-5)
    assert found.tolist() == pytest.approx(rewards, rel=1e-5)


def test_labels_are_more_often_right_than_wrong() -> None:
    with pytest.raises(ValidationError):
        loss_of(type="robust", label_smoothing=0.5)


def test_a_pair_has_two_sides() -> None:
    ids, mask = torch.ones(2, 3, dtype=torch.long), torch.tensor([[False, True, True]] * 2)
    side = ReferencedResponses(ids, torch.tensor([3, 3]), mask, torch.zeros(2))
    rows = torch.arange(2)
    assert PreferencePairs(side, side, rows, torch.ones(2)).select([1]).rows.tolist() == [1]
    with pytest.raises(ValueError, match="2 chosen responses beside 1 rejected"):
        PreferencePairs(side, side.select([0]), rows, torch.ones(2))
    with pytest.raises(ValueError, match="no trained token"):
        ReferencedResponses(ids, torch.tensor([3, 3]), torch.zeros_like(mask), torch.zeros(2))


def responses(logprobs: list[float]) -> ReferencedResponses:
    """Of two trained tokens each; `logprobs`: the reference's."""
    count = len(logprobs)
    mask = torch.tensor([[False, True, True]] * count)
    return ReferencedResponses(
        torch.ones(count, 3, dtype=torch.long), torch.full((count,), 3), mask, torch.tensor(logprobs)
    )


def numbers_of(config: Any, batch: Any, logprobs: list[float], kl: float = 0.0) -> PreferenceNumbers:
    losses, sums = judged(config, batch, torch.tensor(logprobs, requires_grad=True), torch.tensor(kl))
    assert losses.requires_grad and not any(number.requires_grad for number in sums)
    return PreferenceNumbers.of(sums, config, torch.tensor(kl))


def test_the_numbers_of_pairs() -> None:
    """Three pairs: one is ordered rightly, one wrongly, one is a tie."""
    batch = PreferencePairs(
        responses([-3.0, -3.0, -3.0]), responses([-5.0, -5.0, -5.0]), torch.arange(3), torch.ones(3)
    )
    found = numbers_of(loss_of(type="sigmoid", beta=0.5), batch, [-1.0, -3.0, -3.0, -6.0, -4.0, -5.0])
    margins = [0.5 * (2 + 1), 0.5 * (0 - 1), 0.0]
    assert found.loss == pytest.approx(sum(softplus(-margin) for margin in margins) / 3)
    assert (found.accuracy, found.mismatched_kl) == (0.5, None)
    assert (found.chosen_reward, found.rejected_reward) == (pytest.approx(1 / 3), pytest.approx(0.0))
    assert found.margin == pytest.approx(1 / 3) and found.kl == pytest.approx(-(2 + 0 + 0 - 1 + 1 + 0) / 6)


@pytest.mark.parametrize("kind", SOFT_LABELS)
def test_a_soft_label_is_the_mean_over_both_orders(kind: str) -> None:
    """Two pairs: the first is certain, the second is right with the probability 0.7 (of cDPO 0.8·0.7 + 0.2·0.3)."""
    said = {"label_smoothing": 0.2} if kind == "sigmoid" else {}
    config, logprobs = loss_of(type=kind, **said), [-1.0, -3.0, -6.0, -4.0]
    one, other = responses([-3.0, -3.5]), responses([-5.0, -4.5])
    batch = PreferencePairs(one, other, torch.arange(2), torch.tensor([1.0, 0.7]))

    def loss(first: Any, second: Any, numbers: list[float]) -> list[float]:
        hard = PreferencePairs(first, second, torch.arange(2), torch.ones(2))
        return [float(part) for part in judged(config, hard, torch.tensor(numbers), torch.tensor(0.0))[0]]

    right, wrong = loss(one, other, logprobs), loss(other, one, [-6.0, -4.0, -1.0, -3.0])
    found = judged(config, batch, torch.tensor(logprobs), torch.tensor(0.0))[0].tolist()
    assert found == [right[0], pytest.approx(0.7 * right[1] + 0.3 * wrong[1])]
    if kind == "sigmoid":
        margin = 0.1 * ((-3.0 + 3.5) - (-4.0 + 4.5))
        assert found[1] == pytest.approx(0.62 * softplus(-margin) + 0.38 * softplus(margin))


def test_the_numbers_of_labelled_responses() -> None:
    """Of the desirable ones the first is above the KL and the second below, the undesirable one is below."""
    desirable = torch.tensor([True, True, False])
    batch = LabelledResponses(responses([-3.0] * 3), responses([-9.0] * 3), desirable, torch.arange(3))
    config = loss_of(type="kto", beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    found = numbers_of(config, batch, [-1.0, -2.5, -4.0], kl=1.0)

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    losses = [2 * (1 - sigmoid(0.5 * (2 - 1))), 2 * (1 - sigmoid(0.5 * (0.5 - 1))), 3 * (1 - sigmoid(0.5 * (1 + 1)))]
    assert found.loss == pytest.approx(sum(losses) / 3) and found.accuracy == pytest.approx(2 / 3)
    assert (found.chosen_reward, found.rejected_reward) == (pytest.approx(0.625), pytest.approx(-0.5))
    assert found.kl == pytest.approx(-(2 + 0.5 - 1) / 3) and found.mismatched_kl == 1.0
    alone = numbers_of(config, batch.select([0]), [-1.0], kl=1.0)
    assert (alone.chosen_reward, alone.rejected_reward, alone.margin) == (1.0, None, None)


def test_without_a_reference_there_is_no_kl() -> None:
    batch = PreferencePairs(responses([0.0]), responses([0.0]), torch.arange(1), torch.ones(1))
    assert numbers_of(loss_of(type="simpo"), batch, [-1.0, -2.0]).kl is None


@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_exact_preferences_lead_to_the_known_optimum(kind: str) -> None:
    """One-token responses, labelled as a reward r says: DPO's optimum is π_ref·exp(r/β)/Z. IPO's is
    π_ref·exp(p/β)/Z, where p is how often a response is preferred to a uniformly drawn one (arXiv 2310.12036)."""
    torch.manual_seed(0)
    count, beta = 6, 0.5
    rewards, reference = torch.randn(count).double(), torch.randn(count).double().log_softmax(0)
    preferred = torch.sigmoid(rewards[:, None] - rewards)
    better, worse = (~torch.eye(count, dtype=torch.bool)).nonzero().unbind(1)
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], lr=0.5, max_iter=400, tolerance_grad=1e-12, tolerance_change=1e-15)
    rows, tokens = torch.cat([better, worse]), torch.ones(2 * len(better))

    def closure() -> Any:
        optimizer.zero_grad()
        losses, _ = preference_losses(
            loss_of(type=kind, beta=beta), logits.log_softmax(0)[rows], reference[rows], tokens
        )
        total = (preferred[better, worse] * losses).sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    tilt = rewards if kind == "sigmoid" else preferred.mean(1)
    expected = (reference + tilt / beta).softmax(0)
    torch.testing.assert_close(logits.detach().softmax(0), expected, atol=1e-5, rtol=0)
