"""Bytes that a PPO step moves through the driver: arguments to the ranks and their answers, pickled, by call; and the
seconds of CPU that they take, and those of the driver's own work.

The driver's own code runs on role groups that compute nothing and answer at once with tensors of the real shapes; every
row has `--tokens` tokens, a quarter of them the prompt; with `--varied` these are the most, and a response has any
number from one to three times the prompt's. Text is 4 characters a token; the data set has a column of 400 characters.
With `--store` all goes through Ray's object store, and seconds are measured (of all threads, so that other
work on the machine counts little); it must have room for a step. With `--keepers` (row_keepers) the rows themselves are
nowhere: keepers, too, compute nothing, and a reference counts as 150 bytes.

    .venv/bin/python -m tests.benchmarks.driver_bytes [--rows 1024] [--tokens 2048] [--ranks 1] [--epochs 4] [--store]
        [--varied] [--keepers 8] [--responses 16]

More ranks, with several mini-batches (`--mini-batches`), have the same row in different epochs, and it goes to each.
"""

from __future__ import annotations

import argparse
import pickle
import resource
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import ray
import torch

import orchestrator.groups.spread
import orchestrator.ppo.step
from cluster.config import Deadlines
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.ppo import PpoConfig
from orchestrator.groups.canary import EngineGap
from orchestrator.groups.reward import Member
from orchestrator.groups.scoring import Policy, Reward, Roles
from orchestrator.ppo.kl import FixedController
from orchestrator.ppo.moments import Moments
from orchestrator.ppo.state import TrainState
from orchestrator.ppo.stats import TokenSums
from orchestrator.ppo.step import train_step
from orchestrator.run.phase_clock import Clock
from roles.batch import Prompts, Rollouts, Sequences
from roles.config.models import WarmupConfig
from roles.config.rewards import MeanScore
from roles.config.rollout import RolloutConfig
from roles.rollout_facts import RolloutFacts
from tests.unit.orchestrator.fakes import ACTOR, CRITIC, Answers

MB = 1e6
T = TypeVar("T")
ANSWERS = {"actor": ACTOR, "critic": CRITIC}
REFERENCE = 150
"""Bytes of an argument that is a reference: its id and its owner's address."""
SUMS = TokenSums(1, 1, 2, 1, 0.0, 0.0, 0.0, *[Moments(1, 0.0, 0.0)] * 4, 1, 1)


class Size:
    """A file that only counts."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: Any) -> None:
        self.bytes += len(data) if isinstance(data, bytes) else memoryview(data).nbytes


def size_of(value: Any) -> int:
    """Bytes of `value` when it is pickled, as each rank's arguments are: apart from all others."""
    size = Size()
    pickle.Pickler(size, protocol=5).dump(value)  # type: ignore[arg-type]
    return size.bytes


@dataclass
class Stored:
    """What stands for a reference."""

    value: Any


@dataclass
class Reference:
    """What stands for a reference to rows that are nowhere."""

    rows: int = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return bytes, (bytes(REFERENCE),)


@dataclass
class Ledger:
    """What went through the driver."""

    sent: Counter[str] = field(default_factory=Counter)
    """By `role.method`, bytes to all ranks."""
    received: Counter[str] = field(default_factory=Counter)
    stores: bool = False
    """Whether seconds are measured."""
    seconds: Counter[str] = field(default_factory=Counter)
    """Of CPU: `put`, `get`, and the `benchmark`'s own."""

    def note(self, call: str, sent: Any, answer: Any) -> None:
        """Count what a call was given and what it has answered."""
        began = time.process_time()
        self.sent[call] += size_of(sent)
        self.received[call] += size_of(answer)
        answered = ray.put(answer) if self.stores else None
        self.seconds["benchmark"] += time.process_time() - began
        if self.stores:
            self._timed("put", lambda: ray.put(sent))
            self._timed("get", lambda: ray.get(answered))

    def apart(self, work: Callable[[], T]) -> T:
        """What stands for ranks does not count as the driver's work."""
        began = time.process_time()
        made = work()
        self.seconds["benchmark"] += time.process_time() - began
        return made

    def store(self, values: Sequence[Any]) -> list[Stored]:
        """Count once what the calls of several roles are given."""
        for value in values:
            self.note("for several roles", value, None)
        return [Stored(value) for value in values]

    def _timed(self, name: str, work: Callable[[], Any]) -> None:
        began = time.process_time()
        work()
        self.seconds[name] += time.process_time() - began

    @property
    def total(self) -> int:
        """Both ways."""
        return self.sent.total() + self.received.total()


@dataclass
class Referenced(Answers):
    """What ranks have answered, which another role may be given instead of the driver."""

    @property
    def refs(self) -> list[Reference]:
        return [Reference() for _ in self.values]

    def of_ranks(self, numbers: Sequence[int]) -> Referenced:
        return Referenced([self.values[number] for number in numbers])


@dataclass
class Group:
    """Ranks that answer with zeros of the right shape."""

    role: str
    size: int
    ledger: Ledger
    varied: bool

    @property
    def ranks(self) -> Sequence[Any]:
        return [None] * self.size

    def check_alive(self, numbers: Any) -> None: ...

    def __len__(self) -> int:
        return self.size

    def map(self, method: Any, shards: Sequence[Any], *common: Any) -> Answers:
        name, answers = method.__name__, []
        for shard in shards:
            if isinstance(shard, Stored):
                answers.append(self._note(name, self._answer(name, shard.value), *common))
            else:
                answers.append(self._note(name, self._answer(name, shard), shard, *common))
        return Referenced(answers)

    def call(self, method: Any, *arguments: Any) -> Answers:
        return Answers([self._note(method.__name__, None, *arguments) for _ in range(self.size)])

    def map_each(self, method: Any, arguments: Sequence[tuple[Any, ...]]) -> Answers:
        name = method.__name__
        return Referenced([self._note(name, self._answer(name, None), *own) for own in arguments])

    def scatter(self, number: int, method: Any, count: int, *arguments: Any) -> tuple[None, list[Reference]]:
        """What a keeper cuts for ranks."""
        self._note(method.__name__, None, *arguments)
        passes = arguments[2] if method.__name__ == "take" else []
        rows = [len(part) for own in passes for part in own.parts] or [0] * count
        return None, self.ledger.apart(lambda: [Reference(own) for own in rows])

    def streaming(self, deadline_s: float) -> Parts:
        return Parts(self, self.varied)

    def _note(self, method: str, answer: Any, *arguments: Any) -> Any:
        self.ledger.note(f"{self.role}.{method}", arguments, answer)
        return answer

    def _answer(self, method: str, shard: Any) -> Any:
        return self.ledger.apart(lambda: self._made(method, shard))

    def _made(self, method: str, shard: Any) -> Any:
        if method in ("update", "update_from"):
            return ANSWERS[self.role]
        if self.role == "keeper":
            return {"reward": Moments(), "estimate": SUMS, "gaps": {0: EngineGap(0.0, 1)}}.get(method)
        if isinstance(shard, Reference):
            return torch.ones(shard.rows) if method == "score" else None
        if method == "score":
            return torch.ones(len(shard))
        return torch.full((int(shard.response_mask.sum()),), -0.5)


@dataclass
class Parts:
    """What engines answer to the calls that have begun, one part for each."""

    group: Group
    varied: bool
    found: list[tuple[Any, Any]] = field(default_factory=list)

    def begin(self, key: Any, number: int, method: Any, shard: Prompts, version: int, *, pairs: bool = False) -> None:
        if pairs:
            answer: Any = self.group.ledger.apart(lambda: ((0, facts_of(shard, version, self.varied)), Reference()))
        else:
            answer = self.group.ledger.apart(lambda: (0, answered(shard, version, self.varied)))
        self.found.append((key, self.group._note(method.__name__, answer, shard, version)))

    def __iter__(self) -> Parts:
        return self

    def __next__(self) -> tuple[Any, Any]:
        if not self.found:
            raise StopIteration
        return self.found.pop()


def lengths_of(prompts: Prompts, varied: bool) -> torch.Tensor:
    """Tokens of each row: four times its prompt's, or, if they vary, up to that."""
    rows, prompt = len(prompts), len(prompts.token_ids[0])
    shares = torch.rand(rows, generator=torch.Generator().manual_seed(0)) if varied else torch.ones(rows)
    return prompt + (3 * prompt * shares).long().clamp(min=1)


def facts_of(prompts: Prompts, version: int, varied: bool) -> RolloutFacts:
    """Those of `answered`."""
    rows, lengths = len(prompts), lengths_of(prompts, varied)
    generated, counted = lengths - len(prompts.token_ids[0]), [{} for _ in range(rows)]
    ends, versions = torch.ones(rows, dtype=torch.bool), torch.full((rows,), version)
    return RolloutFacts(lengths, generated, ends, versions, torch.zeros(rows), counted)  # type: ignore[arg-type]


def answered(prompts: Prompts, version: int, varied: bool) -> Rollouts:
    """Responses three times as long as their prompts, or, if they vary, up to that."""
    rows, prompt, lengths = len(prompts), len(prompts.token_ids[0]), lengths_of(prompts, varied)
    columns = torch.arange(int(lengths.max()))
    tokens = torch.full((rows, len(columns)), 7)
    mask = (columns >= prompt) & (columns < lengths.unsqueeze(1))
    return Rollouts(
        token_ids=tokens,
        lengths=lengths,
        response_mask=mask,
        rollout_logprobs=-0.5 * mask,
        turn_rewards=torch.zeros(tokens.shape),
        finished=torch.ones(rows, dtype=torch.bool),
        versions=torch.full((rows,), version),
        prompts=list(prompts.texts),
        responses=[f"{row:04d}" * (length - prompt) for row, length in enumerate(lengths.tolist())],
        columns=prompts.columns,
        counted=[{}] * rows,
    )


def asked(rows: int, tokens: int, responses: int) -> Prompts:
    """Each prompt with a text and a column of its own, and so many rows."""
    every = [([row] * tokens, f"{row:04d}" * tokens, f"{row:04d}" * 100) for row in range(rows // responses)]
    ids, texts, columns = ([own[part] for own in every for _ in range(responses)] for part in range(3))
    return Prompts(ids, texts, {"answer": columns}, list(range(rows)), list(range(rows)))  # type: ignore[arg-type]


def measure(
    *,
    rows: int,
    tokens: int,
    ranks: int,
    epochs: int,
    mini_batches: int,
    steps: int,
    store: bool = False,
    varied: bool = False,
    keepers: int = 0,
    responses: int = 1,
) -> Ledger:
    """What `steps` steps moved: all roles with as many ranks, a neural reward."""
    ledger, deadlines = Ledger(stores=store), Deadlines()
    names = ("actor", "critic", "reference", "reward", "rollout")
    group = {role: Group(role, ranks, ledger, varied) for role in names}
    kept = Group("keeper", keepers, ledger, varied) if keepers else None
    roles: Any = Roles(
        cluster=SimpleNamespace(),  # type: ignore[arg-type]
        policy=Policy(group["rollout"], deadlines, environment=False),  # type: ignore[arg-type]
        reward=Reward({"reward": Member(group["reward"], Sequences.of)}, MeanScore()),  # type: ignore[arg-type]
        judge=None,
        deadlines=deadlines,
        keepers=kept,  # type: ignore[arg-type]
        **{role: group[role] for role in ("actor", "critic", "reference")},  # type: ignore[arg-type]
    )
    config: Any = SimpleNamespace(
        ppo=PpoConfig(epochs=epochs, mini_batches=mini_batches),
        deadlines=deadlines,
        seed=0,
        dtype="float32",
        rollout=RolloutConfig(
            prompts_per_step=rows // responses, responses_per_prompt=responses, max_response_tokens=tokens
        ),
        critic=SimpleNamespace(warmup=WarmupConfig()),
        critic_alone=lambda step, warm_at: False,
        canary=CanaryConfig(),
        steps=steps,
    )
    state = TrainState(SimpleNamespace(drawn=[]), FixedController(0.1))  # type: ignore[arg-type]
    waits = [patch.object(module, "wait_all") for module in (orchestrator.ppo.step, orchestrator.groups.spread)]
    with waits[0], waits[1], patch.object(orchestrator.groups.spread, "stored", ledger.store):
        for _ in range(steps):
            prompts, began = asked(rows, tokens // 4, responses), time.process_time()
            train_step(roles, prompts, state, config, Clock(lambda phase: None), lambda scored: None)
            ledger.seconds["step"] += time.process_time() - began
    others = ("put", "get", "benchmark")
    ledger.seconds["compute"] = ledger.seconds.pop("step") - sum(ledger.seconds[name] for name in others)
    return ledger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual = {
        "rows": 1024,
        "tokens": 2048,
        "ranks": 1,
        "epochs": 4,
        "mini-batches": 1,
        "steps": 1,
        "keepers": 0,
        "responses": 1,
    }
    for name, default in usual.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--store", action="store_true", help="move all through Ray's object store, and measure seconds")
    parser.add_argument("--varied", action="store_true", help="responses of all lengths up to the longest")
    arguments = parser.parse_args()
    if arguments.store:
        ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    ledger = measure(**vars(arguments))
    print(f"{'call':>28} {'sent MB':>10} {'received MB':>12}  (a step)")
    for call, sent in ledger.sent.items():
        print(f"{call:>28} {sent / MB / arguments.steps:10.3f} {ledger.received[call] / MB / arguments.steps:12.3f}")
    each = (ledger.sent.total(), ledger.received.total())
    print(f"{'together':>28} {each[0] / MB / arguments.steps:10.3f} {each[1] / MB / arguments.steps:12.3f}")
    print(f"{'both ways':>28} {ledger.total / MB / arguments.steps:10.3f}")
    print(f"{'of a sample':>28} {ledger.total / arguments.rows / arguments.steps:10.0f} bytes")
    for name in ("compute", "put", "get") if arguments.store or arguments.keepers else ():
        print(f"{name:>28} {ledger.seconds[name] / arguments.steps:10.3f} s")
    print(f"{'most memory':>28} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:10.2f} GiB")


if __name__ == "__main__":
    main()
