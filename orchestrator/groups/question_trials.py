"""Which questions end the engines that are asked them: failures and answers flow in; which questions may be asked
together, and which are given up, flow out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass, field

from cluster.counts import counted
from orchestrator.groups.engine_fleet import BUDGET
from orchestrator.groups.recovery import Recovery

FATAL = 3
"""A question is given up when so many engines have failed with it, the last one with it alone."""


@dataclass(slots=True)
class QuestionTrials:
    """Questions with which engines have failed, by their numbers.

    After a failure they are asked in fewer and fewer company: of 400 questions that an engine left, 20 at a time, then
    one at a time. One that is given up was the reason if an engine answers another question later: then its failures
    are not counted, so that a data set may have any number of such questions.

    Example: 400 asked, one of them kills engines → 3 failures, 20 rounds with 20 questions and 19 with one.
    """

    recovery: Recovery
    _failures: dict[int, list[int]] = field(default_factory=dict)
    """Question → numbers of the failures in its company."""
    _most: dict[int, int] = field(default_factory=dict)
    """Question → with how many it may be asked together, itself included."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _given_up: list[int] = field(default_factory=list)
    """Questions of which it is open whether they were the reason."""
    _forgiven: set[int] = field(default_factory=set)

    @property
    def open(self) -> bool:
        """Whether an answer to another question would show that engines are sound."""
        return bool(self._given_up)

    def most(self, row: int) -> float:
        """With how many a question may be asked together, itself included."""
        return self._most.get(row, math.inf)

    def failed(self, rows: Collection[int]) -> set[int]:
        """Note that an engine has failed with these questions; those of them that are given up."""
        failure, given_up = next(self._numbers), set[int]()
        for row in rows:
            self._failures.setdefault(row, []).append(failure)
            self._most[row] = math.isqrt(len(rows)) if len(self._failures[row]) < FATAL - 1 else 1
            if len(rows) == 1 and len(self._failures[row]) >= FATAL:
                self._given_up.append(row)
                given_up.add(row)
        return given_up

    def answered(self, row: int) -> list[int]:
        """Note that an engine has answered a question; those that are given up, which were the reason of failures."""
        self._failures.pop(row, None)
        self._most.pop(row, None)
        reasons, self._given_up = self._given_up, []
        excused = {failure for reason in reasons for failure in self._failures[reason]} - self._forgiven
        for _ in excused:
            self.recovery.forgive(BUDGET)
        self._forgiven |= excused
        if reasons:
            self.recovery.tell(
                f"the engines answer other questions; given up: {counted(len(reasons), 'question')} with which they "
                f"have failed; not counted: {counted(len(excused), 'failure')}"
            )
        return reasons
