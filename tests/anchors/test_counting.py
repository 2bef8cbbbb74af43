"""Eight response tokens, paid by the occurrence of one of them: anchor C of the project, through the whole system."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.anchors.conftest import Row
from tests.anchors.system import VOCABULARY, Task, ppo
from tests.unit.orchestrator.test_anchors import BETA, EACH, TARGET, TOKENS, counted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
SAMPLES = 4096


def test_the_target_is_counted(tmp_path: Path, reached: Row) -> None:
    """Uniform reference; two ranks train the actor. J and KL: exact at each state, averaged over sampled states."""
    score = f"return {EACH} * ids.count({TARGET})"
    trained = Task(tmp_path, score, TOKENS, spread=0.0, responses=128).train(
        ppo=ppo(BETA, advantage={"type": "gae", "lambda": 1.0}),
        placement={"type": "local", "actor": {"ranks": 2}},
    )
    responses = trained.sample(SAMPLES, TOKENS)
    policy, reference = trained.policy(responses)
    torch.testing.assert_close(reference, torch.full_like(reference, -math.log(VOCABULARY)))
    kl = float((policy.exp() * (policy - reference)).sum((1, 2)).mean())
    score_mean = EACH * float(policy[..., TARGET].exp().sum(1).mean())
    p, best, best_kl = counted(torch.full((TOKENS,), EACH))
    best_score = EACH * float(p.sum())
    reached("C: counting", "J", score_mean - BETA * kl, best, 0.02 * best)
    reached("C: counting", "score", score_mean, best_score, 0.03 * best_score)
    reached("C: counting", "KL", kl, best_kl, 0.05 * best_kl)
