"""Does it learn the right thing? Tasks whose optimum is known in closed form, trained with our own mathematics.

The policy is a table of logits by position, the critic a table of values by position; everything between sampling and
the optimizer is the real code: `to_experience`, `optimizer_steps`, `policy_loss`, `value_loss`, the KL controllers.
With γ = 1, k1 in the reward and a fixed score, the optimum is π* ∝ π_ref·exp(r/β). There the objective E[r] - β·KL and
the value of the prompt are β·log Z.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.config.kl import AdaptiveKl, FixedKl
from orchestrator.config.ppo import PpoConfig
from orchestrator.ppo.experience import Experience
from orchestrator.ppo.kl import KlController, make_controller
from orchestrator.ppo.mini_batches import optimizer_steps
from roles.batch import Rollouts, Scored
from roles.losses.kl_estimators import k1, k2, k3
from roles.losses.logprobs import token_logprobs
from roles.losses.means import denominator, masked_mean_weight
from roles.losses.policy_loss import policy_loss
from roles.losses.value_loss import value_loss
from tests.unit.orchestrator.ppo.whole_batch import to_experience

VOCABULARY = 32


class Toy:
    """A policy and a critic that see the position only."""

    def __init__(self, reference: Tensor) -> None:
        """`reference`: log-probabilities `[time, vocab]`, where the policy begins."""
        self.reference = reference
        self.logits = reference.clone().requires_grad_()
        self.values = torch.zeros(len(reference), requires_grad=True)

    def logprobs(self, table: Tensor, responses: Tensor) -> Tensor:
        """Log-probabilities of tokens `[batch, time]`."""
        rows = table.expand(len(responses), -1, -1).flatten(0, 1)
        return token_logprobs(rows, responses.flatten(), 1.0).view(responses.shape)

    def sample(self, batch: int) -> Tensor:
        """Responses, int64 `[batch, time]`."""
        with torch.no_grad():
            return torch.multinomial(self.logits.softmax(-1), batch, replacement=True).T.contiguous()

    @torch.no_grad()
    def score(self, responses: Tensor, scores: Tensor) -> Scored:
        """What the four scoring passes would answer. Each row is one prompt token and a response that has ended."""

        def pad(x: Tensor) -> Tensor:
            return torch.nn.functional.pad(x, (1, 0))

        batch, time = responses.shape
        old = pad(self.logprobs(self.logits, responses))
        rollouts = Rollouts(
            token_ids=pad(responses),
            lengths=torch.full((batch,), time + 1),
            response_mask=pad(torch.ones(batch, time, dtype=torch.bool)),
            rollout_logprobs=old,
            turn_rewards=torch.zeros_like(old),
            finished=torch.ones(batch, dtype=torch.bool),
            versions=torch.zeros(batch, dtype=torch.int64),
            prompts=[""] * batch,
            responses=[""] * batch,
            columns={},
            counted=[{}] * batch,
        )
        return Scored(
            rollouts,
            old_logprobs=old,
            reference_logprobs=pad(self.logprobs(self.reference, responses)),
            values=pad(self.values.expand(batch, -1)),
            scores=scores,
            disagreement=torch.zeros_like(scores),
            named=[{}] * batch,
        )

    def losses(self, experience: Experience, rows: list[int], ppo: PpoConfig) -> tuple[Tensor, Tensor]:
        """Policy and value loss of one optimizer step."""
        actor, critic, clip = experience.actor.select(rows), experience.critic.select(rows), ppo.policy.clip
        mask = actor.response_mask[:, 1:]
        new = self.logprobs(self.logits, actor.token_ids[:, 1:])
        old, advantages = actor.old_logprobs[:, 1:], actor.advantages[:, 1:]
        surrogate, _ = policy_loss(new, old, advantages, clip_low=clip, clip_high=clip)
        values = self.values.expand_as(new)
        error, _ = value_loss(values, critic.values[:, 1:], critic.returns[:, 1:], ppo.value.clip)
        weight, total = masked_mean_weight(mask, ppo.policy.mean), denominator(mask, ppo.policy.mean)
        return (surrogate * weight).sum() / total, (error * weight).sum() / total

    @property
    def kl(self) -> float:
        """KL(π‖π_ref) of a whole response, exact."""
        new = self.logits.detach().log_softmax(-1)
        return float((new.exp() * (new - self.reference)).sum())


@dataclass(frozen=True)
class Schedule:
    """How long and how fast; both learning rates fall to 0 linearly."""

    steps: int = 150
    batch: int = 256
    learning_rate: float = 0.05


def train(
    toy: Toy, score: Callable[[Tensor], Tensor], kl: KlController, ppo: PpoConfig, schedule: Schedule, seed: int = 0
) -> None:
    """PPO, as `orchestrator.ppo.step.train_step` does it."""
    torch.manual_seed(seed)
    optimizer = torch.optim.Adam([toy.logits, toy.values], lr=schedule.learning_rate, betas=(0.9, 0.95), eps=1e-5)
    steps = schedule.steps * ppo.epochs * ppo.mini_batches
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / steps)
    for step in range(schedule.steps):
        responses = toy.sample(schedule.batch)
        experience, stats = to_experience(toy.score(responses, score(responses)), kl.coefficient, ppo)
        parts = {"epochs": ppo.epochs, "mini_batches": ppo.mini_batches, "seed": step, "ranks": 1}
        (mine,) = optimizer_steps(experience.actor.lengths.tolist(), **parts)
        for rows in mine:
            optimizer.zero_grad()
            surrogate, error = toy.losses(experience, rows, ppo)
            (surrogate + error).backward()
            optimizer.step()
            scheduler.step()
        kl.update(stats.kl, schedule.batch)


def make_ppo(**changes: Any) -> PpoConfig:
    return PpoConfig.model_validate({"epochs": 4, "mini_batches": 1, **changes})


def bandit() -> tuple[Toy, Tensor]:
    """One response token; a fixed score by token: a permutation of linspace(-1, 1)."""
    generator = torch.Generator().manual_seed(3)
    reference = (0.3 * torch.randn(1, VOCABULARY, generator=generator)).log_softmax(-1)
    table = torch.linspace(-1, 1, VOCABULARY)[torch.randperm(VOCABULARY, generator=generator)]
    return Toy(reference), table


def optimum(reference: Tensor, table: Tensor, beta: float) -> tuple[Tensor, float, float]:
    """π* `[vocab]`, J* and KL* of the bandit."""
    tilted = reference[0] + table / beta
    best = tilted.softmax(-1)
    objective = beta * float(tilted.logsumexp(-1))
    return best, objective, (float((best * table).sum()) - objective) / beta


@pytest.mark.parametrize(
    ("beta", "ppo"), [(0.3, {"mini_batches": 4}), (0.3, {"whiten_advantages": False}), (1.0, {})], ids=str
)
def test_bandit_reaches_the_tilted_reference(beta: float, ppo: dict[str, Any]) -> None:
    """Anchor A, and of anchor B: k1 in the reward. Whitening and mini-batches do not move the optimum."""
    toy, table = bandit()
    config = make_ppo(**ppo)
    train(toy, lambda r: table[r[:, 0]], make_controller(FixedKl(coefficient=beta)), config, Schedule())
    _, objective, kl = optimum(toy.reference, table, beta)
    policy = toy.logits.detach()[0].softmax(-1)
    assert float((policy * table).sum()) - beta * toy.kl == pytest.approx(objective, abs=0.01)
    assert toy.kl == pytest.approx(kl, rel=0.05)
    assert float(toy.values.detach()[0]) == pytest.approx(objective, abs=0.03)


Estimator = Callable[[Tensor, Tensor], Tensor]


def exact_gradient(
    policy: Tensor, reference: Tensor, table: Tensor, beta: float, *, reward: Estimator | None, loss: Estimator | None
) -> Tensor:
    """Expected gradient `[vocab]` by the logits, over all samples of `policy` `[vocab]` (log-probabilities, float64).

    `reward` is the KL estimator that is subtracted from the score, `loss` the one that is added to the policy loss.
    """
    logits = policy.clone().requires_grad_()
    new = logits.log_softmax(-1)
    advantages = table if reward is None else table - beta * reward(policy, reference)
    per_sample, _ = policy_loss(new, policy, advantages, clip_low=0.2, clip_high=0.2)
    if loss is not None:
        per_sample = per_sample + beta * loss(new, reference)
    (slope,) = torch.autograd.grad((policy.exp() * per_sample).sum(), logits)
    return slope


def forward_optimum(reference: Tensor, table: Tensor, beta: float) -> Tensor:
    """π = β·π_ref/(λ - r), with the λ that makes it sum to 1: the optimum under KL(π_ref‖π)."""
    low, high = float(table.max()), float(table.max()) + beta
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((beta * reference.exp() / (middle - table)).sum()) > 1 else (low, middle)
    return (beta * reference.exp() / (high - table)).log()


def test_where_the_kl_estimator_sits_decides_what_is_optimised() -> None:
    """Anchor B: the places where the expected gradient vanishes."""
    toy, table = bandit()
    reference, table, beta = toy.reference[0].double(), table.double(), 0.3
    tilted = (reference + table / beta).log_softmax(-1)
    forward = forward_optimum(reference, table, beta)
    assert float(forward.exp().sum()) == pytest.approx(1)
    places: dict[str, dict[str, Estimator | None]] = {
        "k1 in reward": {"reward": k1, "loss": None},
        "k2 in loss": {"reward": None, "loss": k2},
        "k3 in loss": {"reward": None, "loss": k3},
        "k2 in reward": {"reward": k2, "loss": None},
        "k3 in reward": {"reward": k3, "loss": None},
    }
    found = {
        name: [
            float(exact_gradient(at, reference, table, beta, **place).abs().max()) < 1e-9 for at in (tilted, forward)
        ]
        for name, place in places.items()
    }
    assert found == {
        "k1 in reward": [True, False],
        "k2 in loss": [True, False],
        "k3 in loss": [False, True],
        "k2 in reward": [False, False],
        "k3 in reward": [False, False],
    }


def test_k1_in_the_loss_regularises_nothing() -> None:
    """Anchor B: its expected gradient is 0 everywhere."""
    toy, table = bandit()
    reference, policy = toy.reference[0].double(), torch.linspace(-1, 2, VOCABULARY).double().log_softmax(-1)
    with_k1 = exact_gradient(policy, reference, table.double(), 0.3, reward=None, loss=k1)
    without = exact_gradient(policy, reference, table.double(), 0.3, reward=None, loss=None)
    torch.testing.assert_close(with_k1, without)


def test_k2_and_k3_in_the_reward_kill_tokens_below_the_reference() -> None:
    """Anchor B: with equal scores k1 raises such a token again; k2 and k3 lower it further."""
    reference = torch.full((VOCABULARY,), -math.log(VOCABULARY), dtype=torch.float64)
    policy = (reference - torch.eye(VOCABULARY, dtype=torch.float64)[0]).log_softmax(-1)
    slopes = {
        name: float(exact_gradient(policy, reference, torch.zeros_like(policy), 0.3, reward=k, loss=None)[0])
        for name, k in {"k1": k1, "k2": k2, "k3": k3}.items()
    }
    assert slopes["k1"] < 0 < min(slopes["k2"], slopes["k3"])


TARGET, TOKENS, EACH, BETA = 5, 8, 0.25, 0.05


def counted(weights: Tensor) -> tuple[Tensor, float, float]:
    """The optimum where a target token at position t is worth `weights[t]`: p* `[time]`, J* (equal weights), KL*."""
    p0 = 1 / VOCABULARY
    tilt = p0 * (weights / BETA).exp()
    normaliser = 1 - p0 + tilt
    p = tilt / normaliser
    kl = p * (p / p0).log() + (1 - p) * ((1 - p) / (1 - p0)).log()
    return p, float(BETA * normaliser.log().sum()), float(kl.sum())


@pytest.mark.parametrize("lambda_", [1.0, 0.8])
def test_counting(lambda_: float) -> None:
    """Anchor C. With λ < 1 and a critic that sees the position only, the end's pay reaches position t as λ^(T-1-t)."""
    toy = Toy(torch.full((TOKENS, VOCABULARY), -math.log(VOCABULARY)))
    ppo = make_ppo(advantage={"type": "gae", "lambda": lambda_})
    schedule = Schedule(learning_rate=0.03)
    train(toy, lambda r: EACH * (r == TARGET).sum(1), make_controller(FixedKl(coefficient=BETA)), ppo, schedule)
    weights = EACH * lambda_ ** torch.arange(TOKENS - 1, -1, -1)
    p, objective, kl = counted(weights)
    ours = toy.logits.detach().softmax(-1)[:, TARGET]
    assert EACH * float(ours.sum()) == pytest.approx(EACH * float(p.sum()), rel=0.03)
    assert toy.kl == pytest.approx(kl, rel=0.05)
    if lambda_ == 1.0:
        assert EACH * float(ours.sum()) - BETA * toy.kl == pytest.approx(objective, rel=0.02)
    else:
        assert ours.tolist() == pytest.approx(p.tolist(), abs=0.06)


@pytest.mark.parametrize("initial", [0.05, 3.0])
def test_the_adaptive_controller_settles_where_the_kl_is_the_target(initial: float) -> None:
    """Anchor E: at β with KL(π*_β‖π_ref) = target, from below and from above."""
    toy, table = bandit()
    target = 0.5
    kl = make_controller(AdaptiveKl(type="adaptive", initial=initial, target=target, horizon=2560))
    train(toy, lambda r: table[r[:, 0]], kl, make_ppo(), Schedule(steps=300, learning_rate=0.1))
    low, high = 0.01, 10.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if optimum(toy.reference, table, middle)[2] > target else (low, middle)
    assert toy.kl == pytest.approx(target, rel=0.05)
    assert kl.coefficient == pytest.approx(low, rel=0.07)
