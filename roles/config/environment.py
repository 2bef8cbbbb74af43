"""What a user may say about the environment that the policy converses with.

Imports no engine; read by `orchestrator.config.run`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roles.config.section import Section


class FunctionEnvironment(Section):
    """A Python class, one instance a conversation, in child processes of each rollout engine.

    `reset(columns) -> messages` begins, `step(response) -> (messages | None, reward)` answers each response; None ends
    the conversation. A `reset` with an argument `seed` is given one.
    """

    type: Literal["function"] = "function"
    """A Python class."""
    path: str = Field(min_length=1)
    """The Python file."""
    name: str = Field(default="Env", pattern=r"^[A-Za-z_]\w*$")
    """The class in it."""
    max_turns: int = Field(default=8, ge=1)
    """A conversation that goes on after so many responses of the policy is cut (*truncated*)."""
    max_tokens: int = Field(ge=2)
    """Longest conversation, the first messages included; what would make it longer cuts it. One response is bounded by
    `rollout.max_response_tokens`."""
    cut_turn: Literal["end", "continue"] = "end"
    """After a response that `rollout.max_response_tokens` cut: `end` takes its reward and ends the conversation as
    truncated, `continue` goes on as if it had ended itself."""
    workers: int = Field(default=1, ge=1)
    """Child processes of each engine that share its conversations; one answers one conversation at a time."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Deadline of one answer; in later turns as many times that, since after a failure all turns are repeated."""
    retries: int = Field(default=2, ge=0)
    """Attempts after the first failed one, before the run fails by name. Each begins with a new instance and repeats
    the conversation so far, which must go as it did."""
