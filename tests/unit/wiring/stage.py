"""A whole run in this process: YAML in, what every role was built from and what its weights became out.

Everything is the program's own, from the configuration file to the roles, but for what needs other processes or takes
long: role groups are plain objects, DeepSpeed is a few lines of torch, and vLLM's engine answers what a random
generator says. Model folders are real and tiny.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self
from unittest.mock import patch

import pytest
import torch
import yaml
from torch import Tensor

import orchestrator.errors
import orchestrator.groups.build
import orchestrator.groups.spread
import orchestrator.ppo.step
import orchestrator.stages.left_models
import orchestrator.stages.ppo
import orchestrator.stages.run
import roles.zero.sharded
from cluster.placement.plan import Plan
from cluster.ranks.role_group import RoleGroup
from cluster.ranks.usage import Usage
from orchestrator.config.loading import load_config
from orchestrator.config.run import RunConfig
from orchestrator.data.demonstrations import read_ptx
from orchestrator.data.ppo_data import PpoData
from orchestrator.data.prompts import read_questions, read_tasks
from roles.text.tokenizer import load_tokenizer
from tests.unit.orchestrator.fakes import Answers
from tests.unit.wiring.engines import FakeLLM, PlainDeepSpeed


@dataclass
class Group:
    """A role's ranks as objects of this process, made when they are first needed."""

    role: str
    factory: Callable[..., Any]
    arguments: list[tuple[Any, ...]]
    stage: dict[str, Group]
    """All groups, by role."""
    started: None = None
    began: dict[str, Tensor] = field(default_factory=dict)
    """Parameters as they were at first."""
    beside: list[Any] = field(default_factory=list)
    """Of each update, what the first rank was given for the pre-training loss."""
    _members: list[Any] = field(default_factory=list)

    @property
    def members(self) -> list[Any]:
        if not self._members:
            self._members = [self.factory(*own) for own in self.arguments]
            if hasattr(self._members[0], "_model") and isinstance(
                self._members[0]._model, roles.zero.sharded.ShardedModel
            ):
                self.began = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        return self._members

    @property
    def parameters(self) -> dict[str, Tensor]:
        """By the names of the folder; an adapter's end in `lora_A` and `lora_B`."""
        named = self.members[0]._model.module.model.named_parameters()
        return {
            name.replace(".base_layer.", ".")
            .replace("lora_A.default.weight", "lora_A")
            .replace("lora_B.default.weight", "lora_B"): tensor
            for name, tensor in named
        }

    @property
    def ranks(self) -> list[int]:
        return list(range(len(self.arguments)))

    def __len__(self) -> int:
        return len(self.arguments)

    def ready(self, deadline_s: float) -> None:
        assert self.members

    def client(self, deadline_s: float, numbers: Any) -> None:
        return None

    def check_alive(self, numbers: Any) -> None: ...

    def map(self, method: Callable[..., Any], shards: list[Any], *common: Any) -> Answers:
        self.beside += [shards[0].beside] if getattr(shards[0], "beside", None) else []
        pairs = zip(self.members, shards, strict=True)
        return Answers([getattr(member, method.__name__)(shard, *common) for member, shard in pairs])

    def call(self, method: Callable[..., Any], *arguments: Any) -> Answers:
        if method.__name__ == "connect":
            return Answers([None] * len(self))
        if method.__name__ == "push":  # the engines of this stage have no weights
            for engine in self.stage["rollout"].members:
                (engine._version,) = arguments
            return Answers([None] * len(self))
        return Answers([getattr(member, method.__name__)(*arguments) for member in self.members])

    def streaming(self, deadline_s: float) -> Running:
        return Running(self)


@dataclass
class Running:
    """Generator methods of a group's ranks, run one after another."""

    group: Group
    calls: list[tuple[Any, Iterator[Any]]] = field(default_factory=list)

    def begin(
        self, key: Any, number: int, method: Callable[..., Any], shard: Any, *common: Any, pairs: bool = False
    ) -> None:
        answer = getattr(self.group.members[number], method.__name__)(shard, *common)
        self.calls.append((key, answer if isinstance(answer, Iterator) else iter((answer,))))

    def __next__(self) -> tuple[Any, Any]:
        while self.calls:
            key, items = self.calls[0]
            for item in items:
                return key, item
            self.calls.pop(0)
        raise StopIteration


class Cluster:
    """Has room for everybody."""

    def __init__(self, plan: Plan, *, deadline_s: float, imports: object = None, waits: object = None) -> None:
        self._plan = plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def places(self, role: str) -> list[Any]:
        return [SimpleNamespace(slot=slot) for slot in self._plan.of(role)]

    def places_again(self, role: str, tell: Any, ranks: Collection[int]) -> list[Any]:
        return self.places(role)

    def check_places(self, groups: list[Group]) -> None:
        for group in groups:
            assert group.members

    def usage(self) -> Usage:
        return Usage([], 0.0, [])


class Recorder:
    """Stands for the Reporter: keeps what it is told."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.steps: list[dict[str, float]] = []
        self.samples: list[list[Any]] = []
        self.kept: list[Any] = []
        """Of each step, what writes its samples."""
        self.evaluations: list[Any] = []
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def status(self, text: str) -> None: ...

    def phase(self, name: str) -> None: ...

    def starting(self, doing: Mapping[str, str]) -> None: ...

    def expect(self, steps: int) -> None: ...

    def reliability(self, curve: Any) -> None: ...

    def note(self, text: str) -> None:
        self.lines.append(text)

    def step(
        self, step: int, metrics: dict[str, float], samples: list[Any], ledger: Any = None, keep: Any = None
    ) -> None:
        self.steps.append(metrics)
        self.samples.append(samples)
        self.kept.append(keep)

    def complete(self) -> None: ...

    def check(self) -> None: ...

    def metrics(self) -> Iterator[tuple[int, dict[str, float]]]:
        return iter(enumerate(self.steps, 1))

    def alerts(self) -> list[dict[str, Any]]:
        return []

    def alert(self, alert: Any) -> None:
        self.lines.append(str(alert))

    def leaves(self, best: int | None, ended: str) -> None: ...

    def timeline(self, part: Any) -> None: ...

    def evaluation(self, result: Any) -> None:
        self.evaluations.append(result)


@dataclass
class Seen:
    """All that a run did."""

    config: RunConfig
    groups: dict[str, Group]
    llms: list[FakeLLM]
    report: Recorder
    error: Exception | None = None
    saved: int = 0
    """How often a checkpoint would have been written."""


def with_changes(said: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values with `key.path` set to others."""
    changed = deepcopy(dict(said))
    for path, value in changes.items():
        *outer, last = path.split(".")
        section = changed
        for key in outer:
            section = section.setdefault(key, {})
        section[last] = deepcopy(value)
    return changed


def written(said: Mapping[str, Any], folder: Path) -> RunConfig:
    """The way of a user's file."""
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(dict(said)))
    return load_config(file)


@contextmanager
def stage() -> Iterator[Seen]:
    """Inside, groups, engines and reports are those of this module."""
    groups: dict[str, Group] = {}
    llms: list[FakeLLM] = []
    report = Recorder()

    def start(role: str, factory: Any, arguments: list[Any], places: list[Any], **options: Any) -> Group:
        assert len(arguments) == len(places)
        groups[role] = Group(role, factory, list(arguments), groups)
        return groups[role]

    def llm(arguments: Any) -> FakeLLM:
        llms.append(FakeLLM(arguments))
        return llms[-1]

    from vllm.v1.engine.llm_engine import LLMEngine

    seen = Seen(None, groups, llms, report)  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patched, patch.dict(os.environ):
        patched.setattr(RoleGroup, "start", start)
        patched.setattr(orchestrator.groups.build, "RayCluster", Cluster)
        for module in (
            orchestrator.groups.build,
            orchestrator.groups.spread,
            orchestrator.ppo.step,
            orchestrator.stages.run,
        ):
            patched.setattr(module, "wait_all", lambda calls, deadline_s, meanwhile=None: None)
        patched.setattr(roles.zero.sharded, "join", lambda device: PlainDeepSpeed)
        patched.setattr(torch.distributed, "get_rank", lambda: 0)
        patched.setattr(torch.distributed, "get_world_size", lambda: 1)
        patched.setattr(LLMEngine, "from_engine_args", llm)
        patched.setattr(orchestrator.stages.run, "Reporter", lambda *a, **k: report)
        patched.setattr(orchestrator.stages.run.Run, "save", lambda run: setattr(seen, "saved", seen.saved + 1))
        patched.setattr(orchestrator.stages.ppo.Ppo, "save_models", lambda ppo: None)
        patched.setattr(orchestrator.stages.ppo, "reference_fingerprint", lambda roles: "")
        patched.setattr(orchestrator.stages.left_models, "_describe_models", lambda *said: None)  # none is left
        yield seen
        for group in groups.values():
            for member in group._members:
                if hasattr(member, "close"):
                    member.close()


def trained(said: Mapping[str, Any], folder: Path) -> Seen:
    """Run `tetrarch train` on plain values, from the prompts to the last step."""
    config = written(said, folder)
    with stage() as seen:
        seen.config = config
        tokenizer = load_tokenizer(config.actor.model.path)

        def questions(part: Any) -> Any:
            return (
                read_tasks(config.prompts, part)
                if config.environment
                else read_questions(config.prompts, part, tokenizer)
            )

        heldout = {name: questions(config.prompts.part(name)) for name in config.prompts.heldout_names}
        ptx = read_ptx(config.ppo.ptx, tokenizer) if config.ppo.ptx else None
        try:
            orchestrator.stages.ppo.train(config, None, PpoData(questions("train"), heldout, ptx))
        except orchestrator.errors.StopTraining as error:
            seen.error = error
    return seen
