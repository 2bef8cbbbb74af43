"""Responses whose length the policy chooses: EOS is a token like others, every token costs, no EOS costs most.

A task of our own. The state is (tokens so far, targets so far), so that the optimum is a small soft dynamic programme.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.anchors.conftest import Row
from tests.anchors.system import VOCABULARY, Task, ppo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TOKENS, EOS, TARGET = 6, 3, 5
EACH, PER_TOKEN, CUT, BETA = 0.4, 0.05, -0.5, 0.1
SAMPLES = 16384


@cache
def value(tokens: int, targets: int) -> float:
    """β·log Z of a state under the uniform reference: what the rest is worth, KL included; all is paid at the end."""
    if tokens == TOKENS:
        return CUT
    end = EACH * targets - PER_TOKEN * (tokens + 1)
    each = [end, value(tokens + 1, targets + 1), *[value(tokens + 1, targets)] * (VOCABULARY - 2)]
    return BETA * (math.log(sum(math.exp(x / BETA) for x in each)) - math.log(VOCABULARY))


def expected() -> tuple[float, float, float]:
    """Score, length and share that is cut, under π*."""
    score = length = cut = 0.0
    alive = {0: 1.0}
    for tokens in range(TOKENS):
        following: dict[int, float] = {}
        for targets, probability in alive.items():
            here = value(tokens, targets)
            end = EACH * targets - PER_TOKEN * (tokens + 1)
            ends, hits = (
                probability * math.exp((q - here) / BETA) / VOCABULARY for q in (end, value(tokens + 1, targets + 1))
            )
            score += ends * end
            length += probability
            following[targets + 1] = following.get(targets + 1, 0.0) + hits
            following[targets] = following.get(targets, 0.0) + probability - ends - hits
        alive = following
    cut = sum(alive.values())
    return score + CUT * cut, length, cut


def test_the_end_is_chosen_where_it_pays(tmp_path: Path, reached: Row) -> None:
    shaping = {
        "score": {"length": {"type": "linear", "per_token": PER_TOKEN}},
        "truncated": {"type": "penalty", "score": CUT},
        "advantage": {"type": "gae", "lambda": 1.0},
    }
    score = f"return {EACH} * ids.count({TARGET})"
    trained = Task(tmp_path, score, TOKENS, spread=0.0, eos=EOS, steps=200).train(ppo=ppo(BETA, **shaping))
    responses = trained.sample(SAMPLES, TOKENS)
    policy, reference = trained.policy(responses)
    ended = (responses == EOS).int().cumsum(1)
    alive = (ended - (responses == EOS).int()) == 0  # tokens up to the first EOS
    length, finished = alive.sum(1), ended[:, -1] > 0
    targets = ((responses == TARGET) & alive).sum(1)
    scores = torch.where(finished, EACH * targets - PER_TOKEN * length, CUT)
    per_state = (policy.exp() * (policy - reference)).sum(2)
    kl = float((per_state * alive).sum(1).mean())
    best, (best_score, best_length, best_cut) = value(0, 0), expected()
    best_kl = (best_score - best) / BETA
    name = "own: EOS chosen"
    reached(name, "J", float(scores.mean()) - BETA * kl, best, 0.03)
    reached(name, "score", float(scores.mean()), best_score, 0.03)
    reached(name, "KL", kl, best_kl, 0.05 * best_kl)
    reached(name, "length", float(length.double().mean()), best_length, 0.05 * best_length)
    reached(name, "cut", float((~finished).double().mean()), best_cut, 0.02)
    reached(name, "V(prompt)", trained.value, best, 0.05)
