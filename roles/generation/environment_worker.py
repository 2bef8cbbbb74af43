"""The child process in which environments run: one instance of the user's class for each open conversation.

Runs as `python environment_worker.py FILE NAME`, with the messages of `roles.functions.child_program`. A request holds
the whole past of a conversation, so that a restarted process can repeat it.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from roles.functions import child_program
from roles.functions.child_program import METRIC_NAME, RAISED, Message, is_finite_float32
from roles.text.messages import FORM, Messages, plain_messages

Said = tuple[Messages | None, float, dict[str, float]]
"""An environment's answer: the next messages, or None if the conversation is over; the reward; and named numbers."""


class OpenEnvironments:
    """The open conversations of one batch, each with its environment and the number of its answers so far."""

    def __init__(self) -> None:
        self._batch = -1
        self._open: dict[int, tuple[Any, int]] = {}

    def answer(self, make: Callable[..., Any], request: dict[str, Any]) -> Message:
        """The environment's next answer, or the traceback of its exception, after which its instance is dropped."""
        if request["batch"] != self._batch:  # conversations of the previous batch that are still open were cut
            self._batch = request["batch"]
            self._open.clear()
        environment, spoken = self._open.pop(request["row"], (None, 0))
        try:
            if environment is None or spoken != len(request["said"]):
                environment = _caught_up(make, request)
            said = _ask(environment, request, len(request["said"]))
        except RAISED:
            return "error", traceback.format_exc()
        if said[0] is not None:
            self._open[request["row"]] = environment, len(request["said"]) + 1
        return "said", said


def _caught_up(make: Callable[..., Any], request: dict[str, Any]) -> Any:
    """A new environment in which the past of the conversation has been repeated."""
    environment = make()
    for turn, known in enumerate(request["said"]):
        again = _ask(environment, request, turn)
        if again != known:
            where = f"turn {turn}" if turn else "reset"
            raise RuntimeError(
                f"{where} said {again!r} when the conversation was repeated after a failure, but {known!r} before; "
                "make the environment a function of columns, seed and responses, or set environment.retries: 0"
            )
    return environment


def _ask(environment: Any, request: dict[str, Any], turn: int) -> Said:
    """Call `reset` in turn 0, later `step` with the policy's response number `turn`."""
    if turn == 0:
        seed = {"seed": request["seed"]} if "seed" in inspect.signature(environment.reset).parameters else {}
        return _messages("reset", environment.reset(request["columns"], **seed)), 0.0, {}
    answer = environment.step(request["responses"][turn - 1])
    if not isinstance(answer, tuple) or len(answer) not in (2, 3):
        raise TypeError(
            f"step returned {answer!r}, not (messages or None, reward) or (messages or None, reward, metrics)"
        )
    messages, reward, named = (*answer, {})[:3]
    if not math.isfinite(reward) or not is_finite_float32(reward):
        raise ValueError(f"step gave the reward {reward!r}, not a finite number (of float32, at most 3.4e38)")
    return None if messages is None else _messages("step", messages), float(reward), _named(named)


def _named(named: Any) -> dict[str, float]:
    """The numbers that a turn counts."""
    if not isinstance(named, Mapping):
        raise TypeError(f"step gave the metrics {named!r}, not a mapping of names to numbers")
    for name, number in named.items():
        if not re.fullmatch(METRIC_NAME, str(name)):
            raise ValueError(f"step called a metric {name!r}; take at most 60 letters, digits and . _ - @ /")
        if (
            number is None
            or isinstance(number, (str, bytes))
            or not math.isfinite(number)
            or not is_finite_float32(number)
        ):
            raise ValueError(f"step gave the metric {name!r} the value {number!r}, not a finite number")
    return {str(name): float(number) for name, number in named.items()}


def _messages(method: str, messages: Any) -> Messages:
    """The messages as plain values whose contents are text."""
    try:
        plain = plain_messages(messages)
    except ValueError as error:
        raise TypeError(f"{method} gave the messages {messages!r}, not a list such as {FORM}: it has {error}") from None
    copied: Messages = json.loads(json.dumps(plain))
    return copied


if __name__ == "__main__":
    child_program.main(OpenEnvironments().answer)
