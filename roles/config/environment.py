"""The environment that the policy converses with: the section `environment`. Imports no engine."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roles.config.section import PathText, Section


class FunctionEnvironment(Section):
    """A Python class with one instance per conversation, in child processes of each rollout engine.

    `reset(columns) -> messages` begins a conversation. `step(response) -> (messages | None, reward)` answers each
    response; None ends the conversation; a third part may hold named numbers. If `reset` has an argument `seed`, it
    gets one.
    """

    type: Literal["function"] = "function"
    """A Python class."""
    path: PathText
    """The Python file."""
    name: str = Field(default="Env", pattern=r"^[A-Za-z_]\w*$")
    """The class in it."""
    max_turns: int = Field(default=8, ge=1)
    """Most responses of the policy in one conversation; a conversation that would go on is cut (*truncated*)."""
    max_tokens: int = Field(ge=2)
    """Most tokens of a conversation, the first messages included; one that would be longer is cut. One response is
    bounded by `rollout.max_response_tokens`."""
    cut_turn: Literal["end", "continue"] = "end"
    """After a response that `rollout.max_response_tokens` cut: `end` takes its reward and ends the conversation as
    truncated; `continue` goes on as if the response had ended by itself."""
    workers: int = Field(default=1, ge=1)
    """Child processes of each engine that share its conversations; one answers one conversation at a time."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for one answer. In turn n the deadline is n times as long, because after a failure all turns are
    repeated."""
    retries: int = Field(default=2, ge=0)
    """Attempts after the first failed one, before the run fails with an error that names the row. Each begins with a
    new instance and repeats the conversation so far, which must go as it went before."""
