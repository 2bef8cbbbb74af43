"""What a judge's answers have cost, and how many questions are still affordable."""

from __future__ import annotations

import random

import pytest

from orchestrator.config.labelling import AskingBudgetConfig, PriceConfig
from orchestrator.data.asking_budget import Spending, affordable, exhausted, most_of, spent_on
from orchestrator.data.judge_prompts import AROUND_TOKENS, JudgeAnswer, JudgeQuestion

PRICES = PriceConfig(prompt=2.0, completion=8.0)


def question(size: int, answer: int = 10) -> JudgeQuestion:
    return JudgeQuestion([{"role": "user", "content": "x" * size}], max_tokens=answer)


def test_money_is_counted_per_million_tokens() -> None:
    spent = spent_on(JudgeAnswer("A", None, 1_000_000, 500_000)) + Spending(2, 0, 250_000)
    assert (spent.requests, spent.tokens) == (3, 1_750_000)
    assert spent.money(PRICES) == pytest.approx(2 + 6) and spent.money(None) == 0


@pytest.mark.parametrize(
    ("budget", "count"),
    [
        ({}, 5),
        ({"requests": 7}, 4),
        ({"requests": 3}, 0),
        ({"tokens": 100 + 3 * (20 + AROUND_TOKENS + 10)}, 3),
        ({"tokens": 100 + 3 * (20 + AROUND_TOKENS + 10) - 1}, 2),
        ({"money": (90 * 2 + 10 * 8 + 2 * ((20 + AROUND_TOKENS) * 2 + 10 * 8)) / 1e6}, 2),
        ({"requests": 100, "tokens": 1}, 0),
    ],
)
def test_as_many_questions_as_cannot_exceed_the_budget(budget: dict[str, float], count: int) -> None:
    said = AskingBudgetConfig.model_validate(budget)
    assert affordable([question(20)] * 5, Spending(3, 90, 10), said, PRICES) == count


def test_the_key_that_is_exceeded_is_named() -> None:
    budget = AskingBudgetConfig(requests=3, tokens=100, money=1.5)
    assert exhausted(Spending(3, 50, 50), budget, PRICES) is None
    assert exhausted(Spending(4, 0, 0), budget, PRICES) == "labelling.budget.requests=3"
    assert exhausted(Spending(1, 50, 51), budget, PRICES) == "labelling.budget.tokens=100"
    dear = PriceConfig(prompt=1e6, completion=0)
    assert exhausted(Spending(1, 2, 0), budget, dear) == "labelling.budget.money=1.5"


def test_no_order_of_asking_exceeds_a_budget_of_tokens() -> None:
    """Answers cost what they may cost at most, or less."""
    source = random.Random(1)
    for _ in range(50):
        waiting = [question(source.randint(0, 60), source.randint(1, 20)) for _ in range(20)]
        budget, spent = AskingBudgetConfig(tokens=source.randint(1, 900)), Spending()
        while count := affordable(waiting, spent, budget, None):
            for asked in waiting[:count]:
                most = most_of(asked)
                spent += Spending(1, source.randint(0, most.prompt_tokens), source.randint(0, most.completion_tokens))
            waiting = waiting[count:]
        assert spent.tokens <= (budget.tokens or 0)
        assert not waiting or exhausted(spent + most_of(waiting[0]), budget, None)
