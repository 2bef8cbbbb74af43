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

    def streaming(self, deadline_s: float) -> FakeStream:
        self.seen.append([])
        return FakeStream(self, self.seen[-1])

    def parts(self, engine: int, method: Any, prompts: Prompts, version: int) -> Iterator[Any]:
        """What a generator method of an engine yields."""
        if method.__name__ == "generate":
            yield rollouts_of(prompts, version + self.stale)
        else:
            self.log.append(f"part of engine {engine}")
            yield 0, rollouts_of(prompts, version + self.stale)

    def check_alive(self, numbers: Any) -> None: ...

    stale: int = 0


@dataclass
class FakeStream:
    """Runs a call when it is read; the latest one first, since parts come in any order."""

    group: FakeGroup
    seen: list[Any]
    calls: list[tuple[Any, Iterator[Any]]] = field(default_factory=list)

    def begin(self, key: Any, number: int, method: Any, shard: Any, *common: Any, pairs: bool = False) -> None:
        if method.__name__ == "generate" and not self.seen:
            self.group.log.append(f"start {self.group.role}.generate")
        self.seen.append(shard)
        self.calls.append((key, self.group.parts(number, method, shard, *common)))

    def __iter__(self) -> FakeStream:
        return self

    def __next__(self) -> tuple[Any, Any]:
        while self.calls:
            key, items = self.calls[-1]
            for item in items:
                return key, item
            self.calls.pop()
        raise StopIteration


def per_token(rollouts: Rollouts) -> torch.Tensor:
    return torch.zeros(int(rollouts.response_mask.sum()))


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
        columns=prompts.columns,
        counted=[{}] * size,
    )


def prompts_of(rows: int) -> Prompts:
    """The first token of each prompt is its row number."""
    return Prompts([[row, 1] for row in range(rows)], ["p"] * rows, {}, list(range(rows)), list(range(rows)))


def write_waits(lines: list[str]) -> Any:
    """What stands in for `cluster.ranks.calls.wait_all`."""

    def wait_all(calls: list[FakeCall], deadline_s: float) -> None:
        lines.append("wait for " + " ".join(sorted(f"{call.group.role}.{call.method}" for call in calls)))

    return wait_all
