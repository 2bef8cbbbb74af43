"""One response token, a fixed score by token: anchors A, B and E of the project, through the whole system."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.anchors.conftest import Row
from tests.anchors.system import VOCABULARY, Task, Trained, ppo
from tests.unit.orchestrator.test_anchors import forward_optimum

pytestmark = [pytest.mark.timeout(1800)]

TABLE = torch.linspace(-1, 1, VOCABULARY)[torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))]
SCORE = f"return {TABLE.tolist()}[ids[0]]"


def task(folder: Path, **changes: int) -> Task:
    return Task(folder, SCORE, tokens=1, spread=0.5, **changes)


def tilted(reference: Tensor, beta: float) -> Tensor:
    """log π* `[vocab]`."""
    return (reference + TABLE.double() / beta).log_softmax(-1)


def policies(trained: Trained) -> tuple[Tensor, Tensor]:
    """Of the trained policy and of the reference, `[vocab]`."""
    mine, reference = trained.policy(torch.zeros(1, 1, dtype=torch.long))
    return mine[0, 0], reference[0, 0]


def kl(policy: Tensor, reference: Tensor) -> float:
    return float((policy.exp() * (policy - reference)).sum())


def objective(policy: Tensor, reference: Tensor, beta: float) -> float:
    return float((policy.exp() * TABLE).sum()) - beta * kl(policy, reference)


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_the_tilted_reference_is_reached(tmp_path: Path, reached: Row, beta: float) -> None:
    """Anchor A, and of anchor B: k1 in the reward."""
    trained = task(tmp_path).train(ppo=ppo(beta))
    policy, reference = policies(trained)
    best = tilted(reference, beta)
    name = f"A: bandit, β {beta:g}"
    reached(name, "J", objective(policy, reference, beta), objective(best, reference, beta), 0.01)
    reached(name, "KL", kl(policy, reference), kl(best, reference), 0.05 * kl(best, reference))
    reached(name, "V(prompt)", trained.value, objective(best, reference, beta), 0.03)


def test_the_tilted_reference_is_reached_quickly(tmp_path: Path, reached: Row) -> None:
    """Anchor A with a weak pull, in fewer steps: for every run of the tests."""
    beta = 1.0
    trained = task(tmp_path, steps=60).train(ppo=ppo(beta))
    policy, reference = policies(trained)
    best = tilted(reference, beta)
    reached("A, 60 steps", "J", objective(policy, reference, beta), objective(best, reference, beta), 0.01)
    reached("A, 60 steps", "KL", kl(policy, reference), kl(best, reference), 0.1 * kl(best, reference))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss_has_the_optimum_of_its_estimator(tmp_path: Path, reached: Row, estimator: str) -> None:
    """Anchor B; unwhitened and without a critic, so that the advantage keeps its scale."""
    beta = 0.3
    penalty = {"where": "loss", "estimator": estimator, "controller": {"type": "fixed", "coefficient": beta}}
    sections = {"ppo": ppo(kl=penalty, advantage={"type": "rloo"})}
    trained = task(tmp_path).train(**sections, critic={"model": None})
    policy, reference = policies(trained)
    best = tilted(reference, beta) if estimator == "k2" else forward_optimum(reference, TABLE.double(), beta)
    name = f"B: bandit, {estimator} in the loss"
    reached(name, "J", objective(policy, reference, beta), objective(best, reference, beta), 0.01)
    reached(name, "KL", kl(policy, reference), kl(best, reference), 0.05 * kl(best, reference))


@pytest.mark.slow
@pytest.mark.parametrize("initial", [0.05, 3.0])
def test_the_controller_settles_at_its_target(tmp_path: Path, reached: Row, initial: float) -> None:
    """Anchor E: from below and from above."""
    target = 0.5
    controller = {"type": "adaptive", "initial": initial, "target": target, "horizon": 5120}
    trained = task(tmp_path, steps=250, responses=512).train(ppo=ppo(kl={"controller": controller}))
    policy, reference = policies(trained)
    low, high = 0.01, 10.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if kl(tilted(reference, middle), reference) > target else (low, middle)
    name = f"E: KL target from β {initial:g}"
    reached(name, "KL", kl(policy, reference), target, 0.05 * target)
    reached(name, "β", trained.metrics[-1]["kl/coefficient"], low, 0.07 * low)
