from __future__ import annotations

import json
import math

import pytest
import torch

from orchestrator.config.kl import AdaptiveKl, FixedKl
from orchestrator.errors import CheckpointError
from orchestrator.metrics import METRICS
from orchestrator.ppo.kl import AdaptiveController, FixedController, make_controller
from roles.losses.kl_estimators import k1, k2, k3

ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


def distributions() -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of a policy and a reference over 16 tokens, float64."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 16, dtype=torch.float64, generator=generator).log_softmax(-1)
    return policy, reference


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    policy, reference = distributions()
    kl = (policy.exp() * (policy - reference)).sum()
    mean = {name: (policy.exp() * k(policy, reference)).sum() for name, k in ESTIMATORS.items()}
    assert mean["k1"].item() == pytest.approx(kl.item())
    assert mean["k3"].item() == pytest.approx(kl.item())
    assert mean["k2"].item() != pytest.approx(kl.item(), rel=0.01)


def test_signs_and_zeros() -> None:
    policy, reference = distributions()
    assert k1(policy, reference).min() < 0
    assert k2(policy, reference).min() >= 0
    assert k3(policy, reference).min() >= 0
    for estimator in ESTIMATORS.values():
        assert (estimator(policy, policy) == 0).all()


def test_no_clamp() -> None:
    assert k1(torch.tensor(0.0), torch.tensor(-50.0)).item() == 50.0
    assert k2(torch.tensor(0.0), torch.tensor(-50.0)).item() == 1250.0
    assert k3(torch.tensor(-30.0), torch.tensor(0.0)).item() == pytest.approx(math.exp(30) - 31)


def test_k3_is_exact_for_small_differences() -> None:
    small = 1e-4
    assert k3(torch.tensor(-small), torch.tensor(0.0)).item() == pytest.approx(small**2 / 2, rel=1e-2)


@pytest.mark.parametrize(
    ("kl", "band"),
    [
        (-0.1, "close"),
        (0.5, "close"),
        (1.5, "moving"),
        (2.0, "healthy"),
        (5.9, "healthy"),
        (8, "stretched"),
        (10.5, "far"),
        (20.5, "collapse"),
        (math.inf, "collapse"),
    ],
)
def test_health_bands(kl: float, band: str) -> None:
    assert METRICS["objective/kl"].band_of(kl) == band


def test_fixed_controller_does_not_move() -> None:
    controller = make_controller(FixedKl(coefficient=0.3))
    assert isinstance(controller, FixedController)
    controller.update(100.0, 512)
    assert controller.coefficient == 0.3
    controller.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert controller.coefficient == 0.3


def test_adaptive_controller_moves_towards_its_target() -> None:
    controller = make_controller(AdaptiveKl(type="adaptive", initial=0.1, target=6.0, horizon=1000))
    assert isinstance(controller, AdaptiveController)
    controller.update(6.0, 100)
    assert controller.coefficient == pytest.approx(0.1)
    controller.update(6.6, 100)
    assert controller.coefficient == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    before = controller.coefficient
    controller.update(600.0, 100)
    assert controller.coefficient == pytest.approx(before * (1 + 0.2 * 0.1))
    before = controller.coefficient
    controller.update(-1.0, 100)
    assert controller.coefficient == pytest.approx(before * (1 - 0.2 * 0.1))


def test_a_batch_larger_than_the_horizon_does_not_turn_the_coefficient_negative() -> None:
    controller = AdaptiveController(0.1, target=6.0, horizon=10)
    controller.update(0.0, 10_000)
    assert controller.coefficient == pytest.approx(0.08)


def test_adaptive_state_survives_json() -> None:
    controller = AdaptiveController(0.1, target=6.0, horizon=1000)
    controller.update(9.0, 333)
    restored = AdaptiveController(0.1, target=6.0, horizon=1000)
    restored.load_state_dict(json.loads(json.dumps(controller.state_dict())))
    assert restored.coefficient == controller.coefficient
    with pytest.raises(CheckpointError, match="KL coefficient"):
        restored.load_state_dict({})
