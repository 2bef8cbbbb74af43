"""What a served policy is asked and answers: prompts and wishes flow in, scored answers flow out; in between, jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from roles.batch import Responses
from roles.packing import right_padded
from roles.serving_engine import Finish


@dataclass(frozen=True, slots=True)
class PromptRead:
    """A prompt: `PromptRead("<user>hi<assistant>", [3, 76, 4], [{"role": "user", "content": "hi"}])`."""

    text: str
    """After the chat template."""
    token_ids: list[int]
    messages: list[dict[str, Any]] | None = None
    """The chat that it was given as."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How a prompt is to be answered."""

    responses: int
    max_tokens: int
    temperature: float
    top_p: float = 1.0
    seed: int = 0
    scored: bool = True
    columns: dict[str, Any] = field(default_factory=dict)
    """Columns of a data set's row that the reward reads, such as `{"answer": "5"}`."""


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One response: `ScoredAnswer("hello", 2, "stop", 0.7)`."""

    text: str
    tokens: int
    finish: Finish
    score: float | None
    """None where nothing scores."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why there is no answer, as an HTTP status and a message."""

    status: int
    message: str


Told = str | list[ScoredAnswer] | Refused
"""What a job is told: new text of its only response; at its end the answers, or why there are none."""


@dataclass(eq=False, slots=True)
class Job:
    """One request."""

    prompt: PromptRead
    wish: Wish
    tell: Callable[[Told], None]
    """Called from the desk's threads; must return at once."""
    streams: bool = False
    """Whether the text is wanted as it grows (of a single response)."""
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    finishes: dict[int, Finish] = field(default_factory=dict)
    sent: int = 0
    """Characters that have been told."""


def responses_of(jobs: Sequence[Job], decode: Callable[[Sequence[int]], str]) -> Responses:
    """The finished responses of `jobs`, as what scores them reads them."""
    rows = [(job, row) for job in jobs for row in range(job.wish.responses)]
    token_ids, lengths = right_padded([[*job.prompt.token_ids, *job.token_ids[row]] for job, row in rows])
    place = torch.arange(token_ids.shape[1])
    begins = torch.tensor([len(job.prompt.token_ids) for job, _ in rows])
    columns = dict.fromkeys(name for job in jobs for name in job.wish.columns)
    given = {name: [job.wish.columns.get(name) for job, _ in rows] for name in columns}
    if any(job.prompt.messages for job in jobs):
        given["messages"] = [job.prompt.messages for job, _ in rows]
    return Responses(
        token_ids=token_ids,
        lengths=lengths,
        response_mask=(place >= begins.unsqueeze(1)) & (place < lengths.unsqueeze(1)),
        finished=torch.tensor([job.finishes[row] == "stop" for job, row in rows]),
        prompts=[job.prompt.text for job, _ in rows],
        responses=[decode(job.token_ids[row]) for job, row in rows],
        columns=given,
    )
