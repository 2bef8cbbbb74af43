"""What travels to the engines and back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.config import Deadlines
from orchestrator.groups.policy import Policy
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
