"""The user's environments, with which the policy converses, in child processes of the rollout engine.

The conversation so far flows in, a Future of the environment's next messages flows out; the engine generates meanwhile.
If an environment raises, hangs or returns anything else, a new instance repeats the conversation, `retries` times. Then
EnvironmentFailed names the sample and the turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from roles.config.environment import FunctionEnvironment
from roles.errors import EnvironmentFailed
from roles.functions.child import CallFailed, Child, LoadFailed, times
from roles.generation import environment_worker
from roles.generation.environment_worker import Said
from roles.spans import span

SHOWN_CHARACTERS = 300
"""Characters of a sample's columns that an error shows."""


class Environments:
    """One instance of the user's class for each conversation, in `workers` processes."""

    def __init__(self, config: FunctionEnvironment) -> None:
        self._config = config
        self._name = f"environment {config.name} of {config.path}"
        self._batch = 0
        # One thread for each process, always the same: requests to one process keep their order.
        self._threads = [ThreadPoolExecutor(1) for _ in range(config.workers)]
        starting = [thread.submit(self._start) for thread in self._threads]
        self._children = [future.result() for future in starting]

    def begin(self) -> None:
        """Begin a new batch of conversations; those that are still open are dropped."""
        self._batch += 1

    def ask(
        self, row: int, columns: dict[str, Any], seed: int, said: Sequence[Said], responses: Sequence[str]
    ) -> Future[Said]:
        """Ask for the environment's next answer in the conversation of `row`; `said`: its answers so far;
        `responses`: the policy's."""
        request = {"batch": self._batch, "row": row, "columns": columns, "seed": seed}
        request |= {"said": list(said), "responses": list(responses)}
        worker = row % len(self._children)
        return self._threads[worker].submit(self._answer, self._children[worker], request)

    def close(self) -> None:
        """End the processes."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)
        for child in self._children:
            child.close()

    def _start(self) -> Child:
        try:
            return Child(environment_worker, self._config.path, self._config.name)
        except LoadFailed as error:
            raise EnvironmentFailed(f"{self._name} cannot be loaded: {error}") from None

    def _answer(self, child: Child, request: dict[str, Any]) -> Said:
        calls = self._config.retries + 1
        for attempt in range(1, calls + 1):
            try:
                # A new instance repeats the answers so far, and each of them may take `timeout_s`.
                with span("environment turn", row=request["row"], turn=len(request["said"])):
                    said: Said = child.call(request, self._config.timeout_s * (1 + len(request["said"])))
                return said
            except LoadFailed as error:
                raise EnvironmentFailed(f"{self._name} cannot be loaded: {error}") from None
            except CallFailed as error:
                if attempt == calls:
                    turn = len(request["said"])
                    where = f"turn {turn}, after the response {request['responses'][-1]!r}," if turn else "reset"
                    raise EnvironmentFailed(
                        f"{self._name}: {where} of the sample with the columns {_short(request['columns'])} failed "
                        f"{times(calls)}, the last time: {error}"
                    ) from None
        raise AssertionError("unreachable: the last failure raises")


def _short(columns: dict[str, Any]) -> str:
    text = repr(columns)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
