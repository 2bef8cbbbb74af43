"""Engines that fail: who answers their prompts, which weights they come back with, and when the run ends."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import orchestrator.groups.spread
from cluster.config import Deadlines
from cluster.errors import ClusterError, DeadlineExceeded, RankFailure
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from orchestrator.config.canary import CanaryConfig
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.errors import TetrarchError
from orchestrator.groups.canary import Canary, with_right_weights
from orchestrator.groups.policy import Policy
from orchestrator.groups.recovery import WINDOW_S, Recovery
from orchestrator.groups.reward import Reward
from orchestrator.groups.scoring import finish_scoring, start_scoring
from roles.batch import Rollouts, Scored
from roles.config.rewards import MeanScore
from roles.config.rollout import RolloutConfig
from tests.unit.orchestrator.fakes import prompts_of, rollouts_of

UNIT = 2
"""Rows of a part."""


@dataclass(frozen=True)
class Engine:
    """The rank of an engine."""

    identity: Identity


@dataclass
class Construction:
    """The start of an engine; `fails` as often as it says."""

    engines: Engines
    number: int

    @property
    def over(self) -> bool:
        return not self.engines.slow

    def result(self, deadline_s: float) -> None:
        self.engines.log.append(f"wait for the start of {self.number}")
        if self.engines.bad_starts:
            self.engines.bad_starts -= 1
            raise death(self.engines.ranks[self.number].identity, "construct")


def death(who: Identity, method: str = "stream") -> Death:
    return Death(f"{who} died in {method}: signal 9", who=who)


@dataclass
class Engines:
    """Engines that fail when they are told to."""

    size: int = 2
    role: str = "rollout"
    log: list[str] = field(default_factory=list)
    slow: bool = False
    """Whether a start is over only when it is waited for."""
    bad_starts: int = 0
    dies: dict[int, int] = field(default_factory=dict)
    """Engine → the number of its parts after which it dies, once."""
    error: Callable[[Identity], ClusterError] = death
    poison: int | None = None
    """The first token of a prompt with which every engine dies."""
    dead: set[int] = field(default_factory=set)
    """Engines that have died and were not noticed."""
    versions: dict[int, int] = field(default_factory=dict)
    """Engine → version of its weights."""

    def __post_init__(self) -> None:
        self.ranks = [Engine(Identity("rollout", n, "node", "log")) for n in range(self.size)]

    def __len__(self) -> int:
        return self.size

    def restart(self, numbers: list[int]) -> Construction:
        for number in numbers:
            old = self.ranks[number].identity
            self.log.append(f"restart {number}")
            self.ranks[number] = Engine(Identity(old.role, old.rank, old.node, old.log, old.life + 1))
            self.versions[number] = 0
            self.dead.discard(number)
        return Construction(self, numbers[0])

    def check_alive(self, numbers: list[int]) -> None:
        for number in numbers:
            if number in self.dead:
                raise death(self.ranks[number].identity, "a call that nobody waits for, or none")

    def client(self, deadline_s: float, numbers: list[int]) -> list[int]:
        return list(numbers)

    def call(self, method: Any, *arguments: Any) -> Any:
        self.log.append(f"{method.__name__} {arguments}")
        return Done()

    def streaming(self, deadline_s: float) -> Running:
        return Running(self)


@dataclass
class Done:
    error: ClusterError | None = None

    def result(self, deadline_s: float) -> None:
        if self.error:
            raise self.error


@dataclass
class Running:
    """Calls that are read one part at a time, in turn."""

    engines: Engines
    calls: list[tuple[Any, int, Engine, Iterator[Any]]] = field(default_factory=list)

    def begin(self, key: Any, number: int, method: Any, prompts: Any, version: int, *, pairs: bool = False) -> None:
        self.engines.log.append(f"{number} is asked for {[ids[0] for ids in prompts.token_ids]}")
        self.calls.append((key, number, self.engines.ranks[number], self._parts(number, method, prompts, version)))

    def __next__(self) -> tuple[Any, Any]:
        while self.calls:
            key, number, rank, items = self.calls.pop(0)
            try:
                item = next(items)
            except StopIteration:
                continue
            except ClusterError:
                self.calls = [call for call in self.calls if call[2] != rank]
                raise
            self.calls.append((key, number, rank, items))
            return key, item
        raise StopIteration

    def _parts(self, number: int, method: Any, prompts: Any, version: int) -> Iterator[Any]:
        rank, size = self.engines.ranks[number], UNIT if method.__name__ == "stream" else len(prompts)
        for first in range(0, len(prompts), size):
            if rank != self.engines.ranks[number]:  # it was replaced: the old process is dead
                raise death(rank.identity)
            if self.engines.dies.get(number, -1) == 0:
                del self.engines.dies[number]
                raise self.engines.error(rank.identity)
            if number in self.engines.dies:
                self.engines.dies[number] -= 1
            rows = range(first, min(first + size, len(prompts)))
            if self.engines.poison in [prompts.token_ids[row][0] for row in rows]:
                raise self.engines.error(rank.identity)
            answer = rollouts_of(prompts.select(rows), self.engines.versions.get(number, version))
            yield (first, answer) if method.__name__ == "stream" else answer


@dataclass
class Trainer:
    """The actor: it pushes to the engines that it has met."""

    engines: Engines
    met: list[int] = field(default_factory=list)
    breaks: list[Identity] = field(default_factory=list)
    """Engines that die during the next pushes."""

    def call(self, method: Any, *arguments: Any) -> Done:
        self.engines.log.append(f"{method.__name__} {arguments}")
        if method.__name__ == "connect":
            (self.met,) = arguments
            return Done()
        if self.breaks:
            return Done(death(self.breaks.pop(0), "update_weights"))
        self.engines.versions.update(dict.fromkeys(self.met, arguments[0]))
        return Done()


@dataclass
class World:
    engines: Engines
    policy: Policy
    actor: Trainer
    told: list[str]
    hours: list[float]
    """The clock."""

    def whole(self, rows: int, version: int, how: str = "stream") -> Rollouts:
        if how == "generate":
            return self.policy.generate(prompts_of(rows), version=version)
        parts = sorted(self.policy.stream(prompts_of(rows), version=version), key=lambda found: found[0])
        assert len({part for part, _ in parts}) == len(parts), "a part came twice"
        return Rollouts.concatenate([rollouts for _, rollouts in parts])


def world(allowed: int = 6, sleeps: bool = False, version: int = 3, **engines: Any) -> World:
    """Engines that the actor has met and given the weights of `version`."""
    group, told, hours = Engines(**engines), list[str](), [0.0]
    recovery = Recovery(RecoveryConfig(engine_failures_per_hour=allowed), told.append, lambda: hours[0] * WINDOW_S)
    made: Any = group
    policy = Policy(made, Deadlines(), sleeps=sleeps, environment=False, stream_samples=UNIT, recovery=recovery)
    actor: Any = Trainer(group)
    policy.connect(actor)
    policy.load(actor, version=version)
    group.log.clear()
    return World(group, policy, actor, told, hours)


def parts_of(made: World, rows: int, version: int, least: int = 1) -> list[tuple[Any, list[int]]]:
    parts = made.policy.stream(prompts_of(rows), version=version, least=least)
    return sorted((part, rollouts.token_ids[:, 0].tolist()) for part, rollouts in parts)


@pytest.mark.parametrize(("how", "after"), [("stream", 0), ("stream", 1), ("generate", 0)])
@pytest.mark.parametrize("size", [2, 3])
def test_every_prompt_of_a_dead_engine_is_answered_once_by_the_others(how: str, after: int, size: int) -> None:
    made = world(size=size, dies={1: after})
    assert made.whole(14, 3, how).token_ids[:, 0].tolist() == list(range(14))
    assert "restart 1" in made.engines.log
    assert not [line for line in made.engines.log if line.startswith("push")], "the others have the weights"


@pytest.mark.parametrize("least", [1, 3, 7, 17, 50])
def test_parts_are_those_of_an_unbroken_run(least: int) -> None:
    """What is scored together is the same, and so is every bit of what follows."""
    expected = parts_of(world(size=3), 17, 3, least)
    assert [row for _, rows in expected for row in rows] == list(range(17))
    assert all(len(rows) >= min(least, 17) for _, rows in expected)
    for dies in ({0: 0}, {1: 1}, {2: 2}, {0: 1, 2: 0}):
        assert parts_of(world(size=3, dies=dies), 17, 3, least) == expected


def test_unanswered_prompts_are_divided_over_the_others() -> None:
    made = world(size=3, dies={0: 1})
    made.whole(24, 3)
    asked = [line for line in made.engines.log if "asked" in line]
    assert asked[3:] == ["1 is asked for [2, 3]", "2 is asked for [4, 5, 6, 7]"], "parts stay whole"
    restarts = made.policy.recovery.drain()
    assert restarts == {"healing/engine_restarts": 1, "healing/prompts_moved": 6}
    assert made.policy.recovery.drain() == {}


def test_two_engines_fail_at_once() -> None:
    made = world(size=3, dies={0: 1, 2: 0})
    assert made.whole(24, 3).token_ids[:, 0].tolist() == list(range(24))
    assert sorted(line for line in made.engines.log if "restart" in line) == ["restart 0", "restart 2"]
    assert made.policy.recovery.drain()["healing/engine_restarts"] == 2


def test_an_engine_that_died_unnoticed_is_replaced_before_it_is_asked() -> None:
    made = world(size=2)
    made.engines.dead = {1}
    assert made.whole(8, 3).token_ids[:, 0].tolist() == list(range(8))
    assert made.engines.log[0] == "restart 1"


def test_the_last_engine_waits_for_its_restart_and_for_the_current_weights() -> None:
    made = world(size=1, dies={0: 1}, slow=True)
    rollouts = made.whole(8, 3)
    assert rollouts.token_ids[:, 0].tolist() == list(range(8)) and rollouts.versions.tolist() == [3] * 8
    assert made.engines.log[1:] == [
        *("restart 0", "wait for the start of 0", "connect ([0],)", "push (3,)", "0 is asked for [2, 3, 4, 5, 6, 7]"),
    ]
    assert made.told[0] == "rollout rank 0 (node node) is started again: it died in stream: signal 9"
    back = (
        r"rollout rank 0 \(node node\) is back after 0\.\d s with weights of version 3: it died in stream: signal 9; "
    )
    assert re.fullmatch(back + "prompts that were moved: 6", made.told[-1])


def test_before_the_first_push_the_folder_has_the_weights() -> None:
    made = world(size=1, dies={0: 1}, version=1)
    made.engines.versions[0] = 0
    assert made.whole(8, 0).versions.tolist() == [0] * 8
    assert not [line for line in made.engines.log if "push" in line or "connect" in line]
    assert "s with weights of version 0: it died" in made.told[-1]


def replaced(folder: Path, name: str) -> None:
    """As a run writes its model: a new folder takes the place of the old one, here with files of the same size."""
    new = folder.with_name("new")
    shutil.copytree(folder, new)
    (new / name).write_text("other weights")
    shutil.rmtree(folder)
    new.rename(folder)


def model_folder(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("right weights")
    return folder


def test_an_engine_that_would_come_back_with_another_model_ends_it(tmp_path: Path) -> None:
    """What the others have answered, and what it would answer, are of two models."""
    for version in (0, 3):  # weights of version 3 are pushed
        folder = model_folder(tmp_path / f"model-{version}")
        made = world(size=2, version=max(version, 1))
        made.engines.versions.update({0: version, 1: version})
        made.policy.recovery.folders.note("rollout", folder)
        (tmp_path / f"served-{version}").hardlink_to(folder / "model.safetensors")
        made.engines.dies = {1: 1}
        assert len(made.whole(8, version)) == 8, "a hard link changes nothing"
        replaced(folder, "model.safetensors")
        made.engines.dies = {0: 1}
        if version:
            assert len(made.whole(8, version)) == 8
            continue
        with pytest.raises(
            TetrarchError, match=rf"^{folder} has changed since rollout was started from it \(config.json, model.safe"
        ):
            made.whole(8, version)
        made.policy.recovery.folders.note("rollout", folder)
        made.engines.dies = {0: 1}
        assert len(made.whole(8, version)) == 8, "it may be served from now on"


def test_a_restarted_engine_gets_no_prompts_before_the_next_push_which_goes_to_all() -> None:
    made = world(size=2, dies={1: 0})
    made.whole(8, 3)
    made.engines.log.clear()
    assert made.whole(8, 3).versions.tolist() == [3] * 8
    assert [line for line in made.engines.log if "asked" in line] == [
        *("0 is asked for [0, 1, 2, 3]", "0 is asked for [4, 5, 6, 7]"),
    ]
    made.engines.log.clear()
    actor: Any = made.actor
    made.policy.load(actor, version=4)
    assert made.engines.log == ["connect ([0, 1],)", "push (4,)"]
    assert made.whole(8, 4).versions.tolist() == [4] * 8
    assert made.engines.log[2:] == ["0 is asked for [0, 1, 2, 3]", "1 is asked for [4, 5, 6, 7]"]
    made.policy.load(actor, version=5)
    assert made.engines.log[4:] == ["push (5,)"], "they have met already"


def test_a_push_does_not_wait_for_an_engine_that_still_starts() -> None:
    made = world(size=2, dies={1: 0}, slow=True)
    made.whole(8, 3)
    made.engines.log.clear()
    actor: Any = made.actor
    made.policy.load(actor, version=4)
    assert made.engines.log == ["connect ([0],)", "push (4,)"]
    made.engines.slow = False
    made.policy.load(actor, version=5)
    assert made.engines.log[2:] == ["wait for the start of 1", "connect ([0, 1],)", "push (5,)"]


def test_engines_whose_push_broke_off_all_start_again() -> None:
    made = world(size=2)
    actor: Any = made.actor
    actor.breaks = [made.engines.ranks[1].identity]
    made.policy.load(actor, version=4)
    assert made.engines.log[0:3] == ["push (4,)", "restart 0", "restart 1"]
    assert made.engines.log[-2:] == ["connect ([0, 1],)", "push (4,)"]
    assert made.whole(8, 4).versions.tolist() == [4] * 8
    assert any("rollout rank 0 (node node) is started again: it got a part of a push" in line for line in made.told)


def test_an_engine_that_fails_while_it_starts_is_started_once_more() -> None:
    made = world(size=1, dies={0: 0}, bad_starts=2)
    assert made.whole(8, 3).versions.tolist() == [3] * 8
    assert made.engines.log.count("restart 0") == 3


def test_engines_that_sleep_are_waited_for_so_that_they_start_while_their_memory_is_free() -> None:
    made = world(size=2, dies={1: 0}, sleeps=True, slow=True)
    assert made.whole(8, 3).versions.tolist() == [3] * 8
    log = made.engines.log
    assert log.index("connect ([1],)") < log.index("push (3,)") < log.index("sleep (False,)")


@pytest.mark.parametrize("how", ["dies", "starts"])
def test_the_budget_ends_the_run(how: str) -> None:
    fails: dict[str, Any] = {"dies": {"dies": {0: 0}}, "starts": {"dies": {0: 0}, "bad_starts": 9}}[how]
    made = world(allowed=2, size=1, **fails)
    if how == "dies":
        for hour in (0.0, 0.5):
            made.hours[0], made.engines.dies = hour, {0: 0}
            made.whole(4, 3)
        made.hours[0], made.engines.dies = 1.2, {0: 0}
        made.whole(4, 3)  # the first one is more than an hour ago
        made.engines.dies = {0: 0}
    spent = r"rollout rank 0 .*\n.*failure number 3 within an hour, and recovery.engine_failures_per_hour=2"
    with pytest.raises(Death, match=spent):
        made.whole(4, 3)


def test_the_prompt_with_which_every_engine_dies_is_told() -> None:
    made, prompts = world(allowed=3, size=4, poison=5), prompts_of(32)
    prompts = replace(prompts, texts=[f"prompt {row}" for row in range(32)])
    with pytest.raises(
        Death, match=r"failure number 4 .*\nAt 4 failures .* not answered these prompts: 'prompt 4', 'prompt 5'"
    ):
        list(made.policy.stream(prompts, version=3))
    assert len(made.told) > 2, "the run went on before"


def test_a_single_engine_or_failure_says_nothing_of_prompts() -> None:
    cases = ((world(allowed=3, size=1, poison=0), 32), (world(allowed=3, size=1, poison=0), 4))
    for made, rows in (*cases, (world(allowed=0, size=4, poison=5), 32)):
        with pytest.raises(Death) as ended:
            made.whole(rows, 3)
        assert "not answered" not in str(ended.value)


def test_without_a_budget_the_first_failure_ends_the_run() -> None:
    made = world(allowed=0, size=2, dies={0: 0})
    with pytest.raises(Death, match=r"^rollout rank 0 \(node node\) died in stream: signal 9$"):
        made.whole(8, 3)
    assert "restart 0" not in made.engines.log


@pytest.mark.parametrize(("exception", "survives"), [("vllm.EngineDead", True), ("roles.errors.RolloutError", False)])
def test_what_another_engine_would_raise_too_ends_the_run(exception: str, survives: bool) -> None:
    def raises(who: Identity) -> RankFailure:
        return RankFailure(f"{who} raised it", who=who, exception=exception)

    made = world(size=2, dies={0: 0}, error=raises)
    if survives:
        assert len(made.whole(8, 3)) == 8
    else:
        with pytest.raises(RankFailure, match="raised it"):
            made.whole(8, 3)


def test_a_deadline_moves_the_prompts_once() -> None:
    def late(who: Identity) -> DeadlineExceeded:
        return DeadlineExceeded("rollout.stream did not end within 1800 s:\nrollout rank 0 is in stream", [who])

    made = world(size=2, dies={0: 0}, error=late)
    assert len(made.whole(8, 3)) == 8
    assert made.told[0] == (
        "rollout rank 0 (node node) is started again: it was late: rollout.stream did not end within 1800 s"
    )
    made = world(size=3, dies={0: 0, 1: 1}, error=late)
    with pytest.raises(DeadlineExceeded):
        made.whole(24, 3)


def test_an_error_of_another_role_ends_the_run() -> None:
    made = world(size=2, dies={0: 0}, error=lambda who: death(Identity("actor", 0, "node", "log")))
    with pytest.raises(Death, match="actor rank 0"):
        made.whole(8, 3)
    assert "restart 0" not in made.engines.log


def test_a_lost_prompt_is_noticed() -> None:
    made = world(size=2)
    original = Running._parts

    def short(self: Running, number: int, method: Any, prompts: Any, version: int) -> Iterator[Any]:
        yield from list(original(self, number, method, prompts, version))[: 1 if number else None]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Running, "_parts", short)
        with pytest.raises(RuntimeError, match="the engines ended without an answer to 2 prompts"):
            made.whole(8, 3)


def test_the_rows_keep_their_seeds() -> None:
    """So that another engine samples the same responses."""
    seeds: list[tuple[int, int]] = []

    def seen(self: Running, number: int, method: Any, prompts: Any, version: int) -> Iterator[Any]:
        seeds.extend(zip([ids[0] for ids in prompts.token_ids], prompts.seeds, strict=True))
        return original(self, number, method, prompts, version)

    made, original = world(size=2, dies={0: 1}), Running._parts
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Running, "_parts", seen)
        made.whole(12, 3)
    assert len(seeds) > 12 and all(row == seed for row, seed in seeds)
    assert torch.equal(made.whole(12, 3).token_ids, world(size=2).whole(12, 3).token_ids)


def scored_by(made: World, wrong: set[int], monkeypatch: pytest.MonkeyPatch) -> tuple[Scored, Scored]:
    """A batch of which the engines of `wrong` have other weights, until they are started again: as it is scored, and
    as it is trained on."""
    original = Running._parts

    def parts(self: Running, number: int, method: Any, prompts: Any, version: int) -> Iterator[Any]:
        off = 0.5 * (number in wrong and not made.engines.ranks[number].identity.life)
        for item in original(self, number, method, prompts, version):
            first, rollouts = item if isinstance(item, tuple) else (0, item)
            changed = replace(rollouts, rollout_logprobs=rollouts.rollout_logprobs - off)
            yield (first, changed) if isinstance(item, tuple) else changed

    monkeypatch.setattr(Running, "_parts", parts)
    monkeypatch.setattr(orchestrator.groups.spread, "wait_all", lambda calls, deadline_s: None)
    roles: Any = SimpleNamespace(policy=made.policy, models={}, reward=Reward({}, MeanScore()), recomputes=True)
    advantage = SimpleNamespace(needs_greedy=False)
    rollout = RolloutConfig(prompts_per_step=1, max_response_tokens=8)
    config: Any = SimpleNamespace(
        dtype="float32",
        rollout=rollout,
        canary=CanaryConfig(),
        ppo=SimpleNamespace(advantage=advantage),
        deadlines=Deadlines(),
    )
    running = [start_scoring(roles, part, rollouts) for part, rollouts in made.policy.stream(prompts_of(12), version=3)]
    scored = finish_scoring(running, 1.0, made.policy.recovery)
    scored = replace(scored, old_logprobs=torch.zeros_like(scored.old_logprobs))
    return scored, with_right_weights(roles, prompts_of(12), scored, Canary(), 3, config)[0]


def gaps(scored: Scored) -> list[float]:
    return scored.rollouts.rollout_logprobs.abs().amax(1).tolist()


def test_an_engine_with_wrong_weights_is_replaced_and_others_answer_its_prompts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = world(size=3)
    before, after = scored_by(made, {1}, monkeypatch)
    assert gaps(before) == [0.0] * 4 + [0.5] * 4 + [0.0] * 4
    assert gaps(after) == [0.0] * 12
    assert after.rollouts.token_ids[:, 0].tolist() == list(range(12)), "rows keep their order"
    assert made.told[0] == "rollout rank 1 (node node) is started again: it samples from other weights than the actor's"
    assert made.policy.recovery.drain() == {"healing/engine_restarts": 1, "healing/prompts_moved": 4}


@pytest.mark.parametrize(
    ("wrong", "settings"),
    [({0, 1}, {}), (set(), {}), ({1}, {"allowed": 0}), ({0}, {"size": 1}), ({1}, {"sleeps": True})],
)
def test_where_no_engine_is_to_blame_the_batch_stays_as_it_is(
    wrong: set[int], settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Canary.check` ends the run then: what was pushed is wrong, or nothing is."""
    made = world(**settings)
    before, after = scored_by(made, wrong, monkeypatch)
    assert after is before and not [line for line in made.engines.log if "restart" in line]
