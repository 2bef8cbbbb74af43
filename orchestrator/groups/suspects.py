"""Which prompts may be the reason why engines fail: failures and answers flow in; what is given up, what is
refused from then on, and which failures are not counted flow out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from orchestrator.groups.engine_fleet import BUDGET
from orchestrator.groups.recovery import WINDOW_S, Recovery

V = TypeVar("V")
AskedPrompt = tuple[int, ...]
"""Token ids of a prompt."""
MOST_FAILURES = 2
"""A prompt is given up when so many engines have failed while they answered it: it may be the reason."""
MOST_REMEMBERED = 1024
"""Prompts that are remembered; older ones are forgotten."""
SHOWN_TOKENS = 32
"""Token ids of a refused prompt that are told."""


@dataclass(slots=True)
class Suspects:
    """Prompts in whose company engines have failed.

    A prompt is given up at its second failure. If nothing else was under suspicion then, and an engine answers another
    prompt later, the prompt was the reason: it is refused for an hour. Otherwise a client that asks again could end
    the server for all; for the same reason those failures are no longer counted against the server. Until that is
    decided, failures in the company of one prompt alone may exceed what the server survives.
    """

    recovery: Recovery
    _failures: dict[AskedPrompt, list[set[int]]] = field(default_factory=dict)
    """Prompt → numbers of the failures in its company; together those of engines that answered it at the same time."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _counted: set[int] = field(default_factory=set)
    """Failures that are counted against the server."""
    _excused: set[int] = field(default_factory=set)
    """Failures that will not be, once an engine has answered another prompt."""
    _alone: dict[int, float] = field(default_factory=dict)
    """Failure in the company of one prompt alone → when it was; while it is open whether the prompt was the reason."""
    _accused: dict[AskedPrompt, None] = field(default_factory=dict)
    """Prompts that will be refused then."""
    _refused: dict[AskedPrompt, float] = field(default_factory=dict)
    """Prompt → when it may be tried again."""

    @property
    def pending(self) -> bool:
        """Whether an answer to another prompt would show that the engines are sound."""
        return bool(self._excused)

    @property
    def undecided(self) -> int:
        """Largest number of failures of which a single prompt may be the reason."""
        since = self.recovery.clock() - WINDOW_S
        recent = {failure for failure, when in self._alone.items() if when > since}
        return max((len(recent & set[int]().union(*found)) for found in self._failures.values()), default=0)

    def refused(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt is not given to engines any more."""
        return self.recovery.clock() < self._refused.get(tuple(prompt), -math.inf)

    def failures(self, prompt: Sequence[int]) -> int:
        """How often engines have failed in the prompt's company, as `blame` is told."""
        return len(self._failures.get(tuple(prompt), ()))

    def blame(self, prompts: Mapping[AskedPrompt, int]) -> set[AskedPrompt]:
        """Note that an engine failed in the company of `prompts`; returns those that are given up.

        Args:
            prompts: prompt → `failures` of it when the engine began to answer it. If there are more by now, another
                engine has failed that answered it at the same time: that is told of the prompt only once.
        """
        failure, alone = next(self._numbers), len(prompts) == 1
        self._counted.add(failure)
        if alone:
            self._alone[failure] = self.recovery.clock()
        for prompt, before in prompts.items():
            found = self._failures.pop(prompt, [])
            earlier, latest = found[:before], set[int]().union(*found[before:])
            _remember(self._failures, prompt, [*earlier, {*latest, failure}])
        given_up = {prompt for prompt in prompts if self.failures(prompt) >= MOST_FAILURES}
        for prompt in given_up:
            self._excused |= set[int]().union(*self._failures[prompt]) & self._counted
            if alone:
                self._accused[prompt] = None
        return given_up

    def answered(self, prompt: Sequence[int]) -> None:
        """Note that an engine has answered the prompt to its end."""
        for failure in set[int]().union(*self._failures.pop(tuple(prompt), ())):
            self._alone.pop(failure, None)
        self._accused.pop(tuple(prompt), None)
        if not self._excused:
            return
        for _ in self._excused:
            self.recovery.forgive(BUDGET)
        self.recovery.tell(
            f"the engines answer other prompts: {len(self._excused)} of their failures are not counted, since "
            "they came with prompts that were given up"
        )
        for accused in self._accused:
            _remember(self._refused, accused, self.recovery.clock() + WINDOW_S)
            shown = " ".join(map(str, accused[:SHOWN_TOKENS])) + (" …" if len(accused) > SHOWN_TOKENS else "")
            self.recovery.tell(
                f"refused for {WINDOW_S / 60:.0f} min, since {MOST_FAILURES} engines failed while they answered it: "
                f"the prompt with the token ids {shown}"
            )
        self._counted -= self._excused
        self._alone = {failure: when for failure, when in self._alone.items() if failure not in self._excused}
        self._excused.clear()
        self._accused.clear()

    def forget(self) -> None:
        """New weights may answer what the old ones failed with."""
        self._failures.clear()
        self._alone.clear()
        self._accused.clear()
        self._refused.clear()


def _remember(found: dict[AskedPrompt, V], prompt: AskedPrompt, value: V) -> None:
    found[prompt] = value
    while len(found) > MOST_REMEMBERED:
        del found[next(iter(found))]
