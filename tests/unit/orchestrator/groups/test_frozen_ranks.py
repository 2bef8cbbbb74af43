"""Ranks of frozen groups that fail: which groups start again, which calls are repeated, and when the run ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import orchestrator.groups.spread
from cluster.errors import ClusterError, DeadlineExceeded, RankFailure
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.errors import TetrarchError
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.spread import Spread, spread, wait_for
from roles.batch import Sequences
from tests.unit.orchestrator.groups.test_engine_fleet import model_folder


def who(role: str, rank: int = 0) -> Identity:
    return Identity(role, rank, "node", "log")


def death(role: str) -> Death:
    return Death(f"{who(role)} died in score: signal 9. More of Ray", who=who(role))


@dataclass
class Group:
    """Answers with the first tokens of its rows, or fails as often as it has `errors`."""

    role: str
    errors: list[ClusterError] = field(default_factory=list)
    bad_starts: int = 0
    log: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return 2

    def map(self, method: Any, shards: list[Sequences]) -> Any:
        self.log.append("map")
        return Call(self.errors.pop(0) if self.errors else None, [shard.token_ids[:, 0].float() for shard in shards])

    def restart(self, numbers: range) -> Any:
        self.log.append(f"restart {list(numbers)}")
        self.bad_starts -= 1
        return Call(death(self.role) if self.bad_starts >= 0 else None, [])


@dataclass
class Call:
    error: ClusterError | None
    answers: list[Tensor]

    def result(self, deadline_s: float) -> list[Tensor]:
        if self.error:
            raise self.error
        return self.answers


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait_all(calls: list[Call], deadline_s: float) -> None:
        for call in calls:
            call.result(deadline_s)

    monkeypatch.setattr(orchestrator.groups.spread, "wait_all", wait_all)


def started(*groups: Group, parts: int = 1) -> list[Spread]:
    rows = torch.arange(12).reshape(6, 2)
    batch = Sequences(rows, torch.full((6,), 2), torch.ones(6, 2, dtype=torch.bool))
    return [spread(group, score, batch) for group in groups for _ in range(parts)]  # type: ignore[arg-type]


def score(rank: Any, rows: Sequences) -> Tensor:
    raise NotImplementedError("the fake group has answers of its own")


def recovery_of(*groups: Group, allowed: int = 6, told: list[str] | None = None) -> Recovery:
    frozen: Any = {group.role: group for group in groups}
    config = RecoveryConfig(frozen_failures_per_hour=allowed)
    return Recovery(config, (told if told is not None else []).append, frozen=frozen, clock=lambda: 5.0)


def test_a_group_starts_again_as_a_whole_and_its_calls_alone_are_repeated() -> None:
    told: list[str] = []
    actor, reward, reference = Group("actor"), Group("reward", [death("reward")]), Group("reference")
    recovery = recovery_of(reward, reference, told=told)
    spreads = started(actor, reward, reference, parts=2)
    wait_for(spreads, 1.0, recovery)
    assert [own.result(1.0).tolist() for own in spreads] == [[0, 2, 4, 6, 8, 10]] * 6
    assert actor.log == reference.log == ["map", "map"]
    assert reward.log == ["map", "map", "restart [0, 1]", "map", "map"], "of both parts: none is known to be whole"
    assert told == [
        "reward: started again, since reward rank 0 (node node) died in score: signal 9",
        "reward: back after 0.0 s",
    ]
    assert recovery.drain() == {"healing/frozen_restarts": 1.0}


def test_two_groups_fail_one_after_the_other() -> None:
    reward, judge = Group("reward", [death("reward")]), Group("judge", [death("judge")], bad_starts=1)
    recovery = recovery_of(reward, judge)
    spreads = started(reward, judge)
    wait_for(spreads, 1.0, recovery)
    assert [own.result(1.0).tolist() for own in spreads] == [[0, 2, 4, 6, 8, 10]] * 2
    assert judge.log.count("restart [0, 1]") == 2, "it died once more while it started"
    assert recovery.drain() == {"healing/frozen_restarts": 3.0}


def test_groups_that_are_late_together_start_again_together() -> None:
    late = DeadlineExceeded("did not end", [who("reward"), who("reward", 1), who("reference")])
    reward, reference = Group("reward", [late]), Group("reference")
    wait_for(started(reward, reference), 1.0, recovery_of(reward, reference))
    assert reward.log.count("restart [0, 1]") == reference.log.count("restart [0, 1]") == 1


@pytest.mark.parametrize(
    "error",
    [
        death("actor"),
        DeadlineExceeded("did not end", [who("reward"), who("actor")]),
        RankFailure("the reward function is wrong", who=who("reward"), exception="roles.errors.RewardError"),
        ClusterError("nobody is to blame"),
    ],
)
def test_other_failures_end_the_run(error: ClusterError) -> None:
    reward = Group("reward", [error])
    with pytest.raises(ClusterError) as caught:
        wait_for(started(reward), 1.0, recovery_of(reward))
    assert caught.value is error and reward.log == ["map"]


def test_a_group_that_would_come_back_with_another_model_ends_it(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "reward")
    reward, judge = Group("reward", [death("reward")]), Group("judge", [death("judge")])
    recovery = recovery_of(reward, judge)
    recovery.folders.note("reward", folder)
    wait_for(started(reward), 1.0, recovery)
    (folder / "config.json").unlink()
    wait_for(started(judge), 1.0, recovery)
    reward.errors = [death("reward")]
    with pytest.raises(TetrarchError, match=rf"^{folder} has changed since reward was started from it \(config.json\)"):
        wait_for(started(reward), 1.0, recovery)
    assert reward.log.count("restart [0, 1]") == 2, "it is looked at when it has loaded"


@pytest.mark.parametrize("allowed", [0, 2])
def test_the_budget_ends_the_run(allowed: int) -> None:
    reward = Group("reward", [death("reward") for _ in range(9)])
    with pytest.raises(Death, match="recovery.frozen_failures_per_hour=2" if allowed else "More of Ray$"):
        wait_for(started(reward), 1.0, recovery_of(reward, allowed=allowed))
    assert reward.log.count("restart [0, 1]") == allowed


def test_a_question_to_a_frozen_group_is_repeated() -> None:
    reference = Group("reference", [death("reference")])
    asked: list[str] = []

    def fingerprint() -> str:
        asked.append("asked")
        Call(reference.errors.pop() if reference.errors else None, []).result(1.0)
        return "of the folder"

    assert recovery_of(reference).repeated(fingerprint) == "of the folder"
    assert len(asked) == 2 and reference.log == ["restart [0, 1]"]


def test_a_second_deadline_in_a_step_ends_the_run() -> None:
    """Each takes so long that a budget of failures within an hour would never be spent."""
    hour = iter(range(1000))
    recovery, key = Recovery(RecoveryConfig(), clock=lambda: 3600.0 * next(hour)), "frozen_failures_per_hour"
    recovery.survive(key, DeadlineExceeded("late"))
    with pytest.raises(DeadlineExceeded, match="second deadline that passed in the same step"):
        recovery.survive(key, DeadlineExceeded("late again"))
    recovery.drain()
    recovery.survive(key, DeadlineExceeded("late in the next step"))


def test_deadlines_of_what_has_no_steps_are_counted_as_other_failures() -> None:
    recovery = Recovery(RecoveryConfig(frozen_failures_per_hour=2), has_steps=False)
    for _ in range(2):
        recovery.survive("frozen_failures_per_hour", DeadlineExceeded("late"))
    with pytest.raises(DeadlineExceeded, match="number 3 within an hour"):
        recovery.survive("frozen_failures_per_hour", DeadlineExceeded("late"))
