"""What travels to the engines and back."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Deadlines
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from cluster.ranks.watch import Rank
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.groups.policy import Policy
from orchestrator.groups.recovery import Recovery
from roles.batch import Prompts, Rollouts
from tests.unit.orchestrator.fakes import FakeGroup, prompts_of, rollouts_of

ROWS = 5
PROMPTS = replace(
    prompts_of(ROWS),
    texts=[f"text {row}" for row in range(ROWS)],
    columns={"answer": [str(row) for row in range(ROWS)]},
)


class Engines(FakeGroup):
    """Two, each of which hands over its last row first, with the columns that it was given."""

    def parts(self, engine: int, method: Any, prompts: Prompts, version: int) -> Iterator[Any]:
        if method.__name__ == "generate":
            yield replace(rollouts_of(prompts, version), columns=prompts.columns)
            return
        for row in reversed(range(len(prompts))):
            part = prompts.select([row])
            yield row, replace(rollouts_of(part, version), columns=part.columns)


def whole(policy: Policy, how: str) -> Rollouts:
    if how == "generate":
        return policy.generate(PROMPTS, version=2)
    parts = sorted(policy.stream(PROMPTS, version=2), key=lambda found: found[0])
    return Rollouts.concatenate([rollouts for _, rollouts in parts])


@pytest.mark.parametrize("how", ["generate", "stream"])
@pytest.mark.parametrize("environment", [False, True])
def test_texts_and_columns_go_to_engines_with_an_environment_alone(how: str, environment: bool) -> None:
    engines = Engines("rollout", [])
    rollouts = whole(Policy(engines, Deadlines(), environment=environment), how)  # type: ignore[arg-type]
    sent = [text for shard in engines.seen[0] for text in (*shard.texts, *shard.columns.get("answer", ()))]
    assert ("text 3" in sent and "3" in sent) == environment
    assert set(sent) == {""} or environment
    assert rollouts.prompts == PROMPTS.texts and rollouts.columns == PROMPTS.columns
    assert rollouts.token_ids[:, 0].tolist() == list(range(ROWS))


@dataclass
class Asleep:
    """Engines that are going to sleep, of which `dead` die."""

    ranks: list[Rank]
    dead: list[Identity]
    waited: list[list[int]]

    def result(self, deadline_s: float) -> None:
        self.waited.append([rank.identity.rank for rank in self.ranks])
        for rank in self.ranks:
            if rank.identity in self.dead:
                raise Death(f"{rank.identity} died in sleep", who=rank.identity)
        for who in self.dead:
            if who.role != "rollout":
                raise Death(f"{who} died in update", who=who)

    def without(self, gone: Collection[Identity]) -> Asleep:
        return replace(self, ranks=[rank for rank in self.ranks if rank.identity not in gone])


@pytest.mark.parametrize(
    ("dead", "allowed", "waited"),
    [
        ([], 6, [[0, 1, 2]]),
        ([1], 6, [[0, 1, 2], [0, 2]]),
        ([0, 2], 6, [[0, 1, 2], [1, 2], [1]]),
        ([1], 0, None),
        (["actor"], 6, None),
    ],
)
def test_all_engines_that_live_are_asleep_when_others_get_their_memory(
    dead: list[Any], allowed: int, waited: list[list[int]] | None
) -> None:
    ranks = [Rank(Identity("rollout", number, "node", "log"), None, None) for number in range(3)]
    gone = [ranks[who].identity if isinstance(who, int) else Identity(who, 0, "node", "log") for who in dead]
    asleep = Asleep(ranks, gone, [])
    engines: Any = SimpleNamespace(call=lambda method, keep_weights: asleep, ranks=ranks, role="rollout")
    recovery = Recovery(RecoveryConfig(engine_failures_per_hour=allowed))
    policy = Policy(engines, Deadlines(), sleeps=True, recovery=recovery)
    if waited is None:
        with pytest.raises(Death):
            policy.rest()
    else:
        policy.rest()
        assert asleep.waited == waited
