"""A reward that is the user's own Python function, called in a child process.

Responses flow in, float32 scores `[batch]` and named numbers flow out. A call that raises, times out, or answers with
the wrong count or a number that is not finite is tried again within the budget; then RewardError names the reward. It
never becomes a zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from roles.batch import Responses
from roles.config.rewards import FunctionReward
from roles.errors import RewardError
from roles.functions import child_program
from roles.functions.child import CallFailed, Child, LoadFailed, times
from roles.reward_call import RowScores, arguments_of, checked_answer, decode_of, openrlhf_arguments
from roles.spans import span
from roles.text.policy_text import PolicyText


class FunctionScorer:
    """Calls the user's function in a child process, which is ended and started anew when it does not answer in time."""

    def __init__(self, config: FunctionReward, policy: PolicyText | None = None) -> None:
        """`policy`: whose tokens the responses are; only `protocol: openrlhf` reads them."""
        self._config = config
        self._decode = decode_of(policy)
        self._name = f"reward function {config.name} of {config.path}"
        try:
            self._child = Child(child_program, config.path, config.name)
        except LoadFailed as error:
            raise RewardError(f"{self._name} cannot be loaded: {error}") from None

    def score(self, answered: Responses) -> Tensor:
        """float32 `[batch]`: the function's number for each response."""
        return self.row_scores(answered).scores

    def row_scores(self, answered: Responses) -> RowScores:
        """The function's number for each response, and its metrics."""
        if not len(answered):
            return RowScores(torch.zeros(0), [])
        arguments = arguments_of(answered)
        if self._config.protocol == "openrlhf":
            arguments = openrlhf_arguments(answered, self._config.label, self._decode)
        calls = self._config.retries + 1
        for attempt in range(1, calls + 1):
            try:
                with span("reward call", rows=len(answered), attempt=attempt):
                    answer = self._child.call(arguments, self._config.timeout_s)
                return checked_answer(answer, len(answered))
            except LoadFailed as error:
                raise RewardError(f"{self._name} cannot be loaded: {error}") from None
            except CallFailed as error:
                if attempt == calls:
                    raise RewardError(f"{self._name} failed {times(calls)}, the last time: {error}") from None
        raise AssertionError("unreachable: the last failure raises")

    def close(self) -> None:
        """End the child process."""
        self._child.close()
