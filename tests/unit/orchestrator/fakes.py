"""Role groups that answer at once and write down what is asked of them, and when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from roles.actor import ActorStats
from roles.batch import Prompts, Rollouts
from roles.critic import CriticStats

ROWS, PROMPT, TIME = 4, 2, 5
ACTOR = ActorStats(0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
CRITIC = CriticStats(0.0, 0.0, 1.0, 1.0)


@dataclass
class Answers:
    """A call of a group that has ended."""

    values: list[Any]

    def result(self, deadline_s: float) -> list[Any]:
        return self.values


@dataclass
class FakeCall:
    """Answers at once; the log says when it was waited for."""

    group: FakeGroup
    method: str
    answers: list[Any]

    def result(self, deadline_s: float) -> list[Any]:
        return self.answers


@dataclass
class FakeGroup:
    """A role group whose methods answer with zeros, or with what they were given."""

    role: str
    log: list[str]
    size: int = 2
    seen: list[Any] = field(default_factory=list)
    """Shards of every `map`."""

    def __len__(self) -> int:
        return self.size

    @property
    def ranks(self) -> list[str]:
        return [f"{self.role}-{rank}" for rank in range(self.size)]

    def map(self, method: Any, shards: list[Any], *common: Any) -> FakeCall:
        self.log.append(f"start {self.role}.{method.__name__}")
        self.seen.append(shards)
        answers = {
            "update": lambda shard: CRITIC if self.role == "critic" else ACTOR,
            "score": lambda shard: scores_of(shard),
            "generate": lambda shard: rollouts_of(shard, *common),
        }
        return FakeCall(self, method.__name__, [answers.get(method.__name__, per_token)(shard) for shard in shards])

    def call(self, method: Any, *arguments: Any) -> FakeCall:
        self.log.append(f"{self.role}.{method.__name__}{arguments}")
        return FakeCall(self, method.__name__, [{} if method.__name__ == "save_state" else None] * self.size)

    def stop(self) -> None:
        self.log.append(f"{self.role} ends")

    def stream(
        self, method: Any, shards: list[Any], version: int, *, deadline_s: float
    ) -> Iterator[tuple[int, tuple[int, Any]]]:
        for engine in reversed(range(self.size)):  # parts come in any order
            self.log.append(f"part of engine {engine}")
            yield engine, (0, rollouts_of(shards[engine], version + self.stale))

    stale: int = 0


def per_token(rollouts: Rollouts) -> torch.Tensor:
    return torch.zeros(rollouts.token_ids.shape)


def scores_of(rollouts: Rollouts) -> torch.Tensor:
    """The first token of each prompt: so that a row is known again."""
    return rollouts.token_ids[:, 0].float()


def rollouts_of(prompts: Prompts, version: int) -> Rollouts:
    size = len(prompts)
    mask = (torch.arange(TIME) >= PROMPT).expand(size, TIME).contiguous()
    tokens = torch.tensor([[*ids, 7, 8, 9] for ids in prompts.token_ids])
    return Rollouts(
        token_ids=tokens,
        lengths=torch.full((size,), TIME),
        response_mask=mask,
        rollout_logprobs=torch.zeros(size, TIME),
        turn_rewards=torch.zeros_like(mask, dtype=torch.float32),
        finished=torch.ones(size, dtype=torch.bool),
        versions=torch.full((size,), version),
        prompts=list(prompts.texts),
        responses=["r"] * size,
        columns={},
    )


def prompts_of(rows: int) -> Prompts:
    """The first token of each prompt is its row number."""
    return Prompts([[row, 1] for row in range(rows)], ["p"] * rows, {}, list(range(rows)), list(range(rows)))


def write_waits(lines: list[str]) -> Any:
    """What stands in for `cluster.ranks.calls.wait_all`."""

    def wait_all(calls: list[FakeCall], deadline_s: float) -> None:
        lines.append("wait for " + " ".join(sorted(f"{call.group.role}.{call.method}" for call in calls)))

    return wait_all
