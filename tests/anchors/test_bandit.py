"""One response token, a fixed score by token: anchors A, B and E of the project, through the whole system."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.anchors.conftest import Row
from tests.anchors.system import VOCABULARY, Task, Trained, ppo
from tests.unit.orchestrator.test_anchors import forward_optimum

pytestmark = [pytest.mark.timeout(1800)]

TABLE = torch.linspace(-1, 1, VOCABULARY)[torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(3))]
SCORE = f"return {TABLE.tolist()}[ids[0]]"


def task(folder: Path, **changes: Any) -> Task:
    return Task(folder, SCORE, tokens=1, spread=0.5, **changes)


def tilted(reference: Tensor, beta: float) -> Tensor:
    """log π* `[vocab]`."""
    return (reference + TABLE.double() / beta).log_softmax(-1)


def policies(trained: Trained, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities `[vocab]` of the trained policy and of the reference at `temperature`."""
    mine, reference = trained.policy(torch.zeros(1, 1, dtype=torch.long))
    return (mine[0, 0] / temperature).log_softmax(-1), (reference[0, 0] / temperature).log_softmax(-1)


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
def test_the_tilted_reference_is_that_at_the_temperature_of_the_rollouts(tmp_path: Path, reached: Row) -> None:
    """Anchor A with other logits than those at 1: old, new and reference log-probabilities are all divided by it."""
    beta, temperature = 0.3, 0.7
    trained = task(tmp_path, sampling={"temperature": temperature}).train(ppo=ppo(beta))
    policy, reference = policies(trained, temperature)
    best = tilted(reference, beta)
    name = f"A: bandit, temperature {temperature:g}"
    reached(name, "J", objective(policy, reference, beta), objective(best, reference, beta), 0.01)
    reached(name, "KL", kl(policy, reference), kl(best, reference), 0.05 * kl(best, reference))
    reached(name, "V(prompt)", trained.value, objective(best, reference, beta), 0.03)


@pytest.mark.slow
def test_among_what_top_p_leaves_the_tilted_reference_is_reached(tmp_path: Path, reached: Row) -> None:
    """Anchor A where the least probable tokens are never drawn: nothing is learnt of them, and of the others what is
    right for the others: the tilted reference, renormalised over what top-p leaves of the trained policy."""
    beta, top_p = 0.3, 0.9
    importance = {"policy": {"importance": {"type": "truncated"}}}
    trained = task(tmp_path, sampling={"top_p": top_p}).train(ppo=ppo(beta, **importance))
    policy, reference = policies(trained)
    kept = nucleus(policy, top_p)
    assert 4 <= kept.sum() < VOCABULARY - 4
    policy, best = policy[kept].log_softmax(-1), tilted(reference, beta)[kept].log_softmax(-1)
    name = f"A: bandit, top-p {top_p:g}"
    reached(name, "KL from the optimum", kl(policy, best), 0.0, 0.01)
    reached(name, "E[r]", float(policy.exp() @ TABLE[kept].double()), float(best.exp() @ TABLE[kept].double()), 0.01)


def nucleus(logprobs: Tensor, top_p: float) -> Tensor:
    """bool `[vocab]`: the most probable tokens, as many as it takes to reach `top_p`."""
    order = logprobs.argsort(descending=True)
    before = logprobs[order].exp().cumsum(-1) - logprobs[order].exp()
    return torch.zeros_like(logprobs, dtype=torch.bool).scatter(0, order, before < top_p)


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
