"""What has been spent on a judge's answers, and which questions are still affordable. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.config.labelling import AskingBudgetConfig, PriceConfig
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion


@dataclass(frozen=True, slots=True)
class Spending:
    """Answers, and the tokens of questions and answers: `Spending(12, 4200, 96)`."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Spending) -> Spending:
        return Spending(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    @property
    def tokens(self) -> int:
        """Of questions and answers."""
        return self.prompt_tokens + self.completion_tokens

    def money(self, prices: PriceConfig | None) -> float:
        """In the currency of the prices; 0 without prices."""
        if prices is None:
            return 0.0
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1e6


def spent_on(answer: JudgeAnswer) -> Spending:
    """What an answer has cost."""
    return Spending(1, answer.prompt_tokens, answer.completion_tokens)


def most_of(question: JudgeQuestion) -> Spending:
    """What an answer may cost at most."""
    return Spending(1, question.most_prompt_tokens, question.max_tokens)


def exhausted(spent: Spending, budget: AskingBudgetConfig, prices: PriceConfig | None) -> str | None:
    """The first key of the budget that `spent` exceeds, with its value; None if there is none."""
    limits = {"requests": spent.requests, "tokens": spent.tokens, "money": spent.money(prices)}
    for key, found in limits.items():
        limit = getattr(budget, key)
        if limit is not None and found > limit:
            return f"labelling.budget.{key}={limit:g}"
    return None


def affordable(
    questions: Sequence[JudgeQuestion], spent: Spending, budget: AskingBudgetConfig, prices: PriceConfig | None
) -> int:
    """How many of the questions, from the first on, can be asked without ever exceeding the budget."""
    for number, question in enumerate(questions):
        spent += most_of(question)
        if exhausted(spent, budget, prices):
            return number
    return len(questions)
