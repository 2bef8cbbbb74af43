"""Asks a judge: questions flow in, answers flow out, each asked once and kept on disk before the next; until the budget
is spent or the judge is down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from orchestrator.config.labelling import AskingBudgetConfig, PriceConfig
from orchestrator.data.answer_file import AnswerFile
from orchestrator.data.asking_budget import affordable, exhausted, most_of
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion
from orchestrator.errors import TetrarchError

MOST_REFUSALS = 8
"""So many refused questions without one answer mean that the judge is asked wrongly."""


class JudgeDown(TetrarchError):
    """The judge does not answer any more."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A question that the judge cannot answer, such as one that is too long for it."""

    reason: str
    lasting: bool = False
    """Whether it is not to be asked again, by a command that goes on either."""


class Judge(Protocol):
    """Answers questions."""

    @property
    def name(self) -> str:
        """Whatever else than the question decides the answer: another name, another judge. No secrets."""

    def answers(self, questions: Sequence[JudgeQuestion]) -> Iterator[tuple[int, JudgeAnswer | Refusal]]:
        """(number of the question, answer), in any order. JudgeDown once no more are to come."""


@dataclass(slots=True)
class Asking:
    """The questions to one judge and their answers."""

    judge: Judge
    file: AnswerFile
    budget: AskingBudgetConfig
    prices: PriceConfig | None
    asked: int = 0
    """Questions that were answered since the start."""
    refusals: dict[str, Refusal] = field(default_factory=dict)
    """Key of a question → why the judge refused it."""
    stopped: str | None = None
    """Why nothing is asked any more."""
    _new: set[str] = field(default_factory=set)
    _reused: set[str] = field(default_factory=set)
    _name: str = field(init=False)

    def __post_init__(self) -> None:
        self._name = self.judge.name  # once: a model's judge looks at its files for it

    @property
    def reused(self) -> int:
        """Answers that an earlier command has left."""
        return len(self._reused)

    def refusal(self, question: JudgeQuestion) -> Refusal | None:
        """Why the judge refused the question; None if it has not."""
        return self.refusals.get(question.key(self._name))

    def answers(self, questions: Sequence[JudgeQuestion]) -> list[JudgeAnswer | None]:
        """An answer to each question; None for a refused one, and for those that were not asked."""
        keys = [question.key(self._name) for question in questions]
        self._reused |= {key for key in keys if key not in self._new and self.file.get(key)}
        self.refusals |= {key: Refusal(self.file.errors[key]) for key in keys if key in self.file.errors}
        waiting = {key: question for key, question in zip(keys, questions, strict=True) if not self._known(key)}
        while waiting and self.stopped is None:
            self._ask(waiting)
            waiting = {key: question for key, question in waiting.items() if not self._known(key)}
        return [self.file.get(key) for key in keys]

    def _known(self, key: str) -> bool:
        return key in self.refusals or self.file.get(key) is not None

    def _ask(self, waiting: dict[str, JudgeQuestion]) -> None:
        """Ask as many as the budget surely allows."""
        keys, questions = list(waiting), list(waiting.values())
        count = affordable(questions, self.file.spent, self.budget, self.prices)
        if not count:
            spent = self.file.spent
            limit = exhausted(spent + most_of(questions[0]), self.budget, self.prices)
            self.stopped = (
                f"{limit} does not allow another question, which may need {most_of(questions[0]).tokens} tokens: "
                f"{spent.requests} answers of {spent.tokens} tokens have been paid; raise it"
            )
            return
        try:
            for number, answer in self.judge.answers(questions[:count]):
                self._take(keys[number], answer)
                if self.stopped is not None:
                    return
        except JudgeDown as error:
            self.stopped = str(error)

    def _take(self, key: str, answer: JudgeAnswer | Refusal) -> None:
        if isinstance(answer, JudgeAnswer):
            self.file.add(key, answer)
            self._new.add(key)
            self.asked += 1
            return
        if answer.lasting:
            self.file.add_error(key, answer.reason)
        self.refusals[key] = answer
        if not self.asked and len(self.refusals.keys() - self.file.errors) >= MOST_REFUSALS:
            self.stopped = f"the judge refuses every question: {answer.reason}"
