"""Engines that fail while they serve: every response is whole, and new weights are those of all engines."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Deadlines
from cluster.errors import RankFailure
from cluster.ranks.failures import Death
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.config.serving import ServingConfig
from orchestrator.groups import serving_roles
from orchestrator.groups.recovery import Recovery
from tests.unit.orchestrator.groups.failing_engines import NOW_S, WHOLE, Engines, dies, hangs, refuses, world


def test_responses_of_a_dead_engine_go_on_where_they_were() -> None:
    made = world()
    made.turn("a", "b", "c", "d")
    made.turn()
    made.engines.fails[1] = [dies]
    made.turn()
    assert {name: len(text) for name, text in made.texts.items()} == {"a": 3, "b": 2, "c": 3, "d": 2}
    for _ in range(3):
        made.turn()
    assert made.texts == dict.fromkeys("abcd", WHOLE) and made.ends == dict.fromkeys("abcd", "length")
    assert made.told[0].startswith("rollout rank 1 (node node) is started again: it died in advance")
    assert "is back after" in made.told[1] and made.told[1].endswith("prompts that were moved: 2")
    assert "version" not in made.told[1]
    made.turn("e", "f")
    assert [len(rank.work) for rank in made.engines.ranks] == [1, 1], "the new engine works"


def test_others_go_on_while_an_engine_hangs_until_it_is_started_again() -> None:
    made = world()
    made.engines.fails[1] = [hangs]
    made.turn("a", "b")
    for _ in range(3):
        made.turn()
    assert made.texts == {"a": WHOLE} and not made.told
    made.policy.stall_s = NOW_S
    made.turn_until(lambda: made.texts.get("b") == WHOLE)
    assert "it was late: rollout.advance did not end within 60 s" in made.told[0]


def test_others_go_on_while_an_engine_that_hangs_is_ended_which_takes_seconds() -> None:
    made = world(size=3)
    made.engines.fails[1] = [hangs]
    made.engines.may_end.clear()
    made.turn("a", "b", "c")
    made.policy.stall_s = NOW_S
    for names in ([], ["d", "e", "f"], [], [], [], []):
        made.turn(*names)
    assert made.texts == dict.fromkeys("acdef", WHOLE) and not made.told
    made.engines.dead = {1}  # as it is ended: that is no failure of its own
    made.turn()
    assert made.engines.log == ["end [1]"]
    made.engines.may_end.set()
    made.turn_until(lambda: "b" in made.ends)
    assert made.texts["b"] == WHOLE and made.engines.log[:2] == ["end [1]", "restart 1 from first"]
    assert len(made.told) == 2 and "it was late: rollout.advance did not end within 60 s" in made.told[0]


def test_the_last_engine_that_hangs_is_waited_for() -> None:
    """Nobody could go on meanwhile."""
    made = world(size=2, stall_s=NOW_S)
    made.engines.fails = {0: [hangs], 1: [hangs]}
    made.engines.may_end.clear()
    made.turn("a", "b")
    made.turn()
    assert made.engines.log[:2] == ["end [0]", "restart 1 from first"]
    made.engines.may_end.set()
    made.turn_until(lambda: made.ends.keys() == set("ab"))
    assert made.texts == dict.fromkeys("ab", WHOLE)


def test_the_only_engine_is_waited_for() -> None:
    made, waited = world(size=1, slow=True), list[set[str]]()
    admit = made.policy.fleet._admit

    def admitted(version: int, *, wait: bool = False) -> None:
        waited.append(set(made.policy.recovery.waited_for))
        admit(version, wait=wait)

    made.policy.fleet._admit = admitted  # type: ignore[method-assign]
    made.turn("a")
    made.engines.fails[0] = [dies]
    for _ in range(4):
        made.turn()
    assert made.texts == {"a": WHOLE}
    assert waited.count({"rollout"}) == 1 and not made.policy.recovery.waited_for


def test_what_serves_has_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    group: Any = Engines()
    build = SimpleNamespace(recovery=Recovery(), engines=lambda *_, **more: group)
    build.reward, build.ready = (lambda models: None), lambda: None
    monkeypatch.setattr(serving_roles, "builder", lambda *_: nullcontext(build))
    monkeypatch.setattr(serving_roles, "engines_neighbours", lambda placement: False)
    config: Any = SimpleNamespace(scorers={}, recovery=RecoveryConfig(), placement=None, deadlines=Deadlines())
    config.serving = ServingConfig()
    with serving_roles.serving_roles(config, models=None) as roles:  # type: ignore[arg-type]
        assert not roles.policy.recovery.has_steps


def test_failures_are_counted() -> None:
    made = world(allowed=2, size=1)
    with pytest.raises(Death, match=r"number 3 within an hour, and recovery\.engine_failures_per_hour=2"):
        for names in ("ab", "cd", "ef"):
            made.turn(*names)
            made.engines.fails[0] = [dies]
            for _ in range(8):
                made.turn()
    assert made.ends == dict.fromkeys("abcd", "length")
    assert len([line for line in made.told if "is started again" in line]) == 2


def test_deadlines_that_pass_long_after_each_other_do_not_end_the_server() -> None:
    made = world(size=1, stall_s=NOW_S)
    for name in "abc":
        made.engines.fails[0] = [hangs]
        for _ in range(6):
            made.turn(*([name] if name not in made.texts else []))
    assert made.texts == dict.fromkeys("abc", WHOLE)


def test_a_dropped_response_is_given_up_by_its_engine_alone() -> None:
    made = world()
    made.turn("a", "b", "c")
    made.turn(dropped=("a", "b"))
    assert [list(rank.work) for rank in made.engines.ranks] == [["c"], []]
    made.turn("d", tokens=1)
    assert made.ends == {"d": "length"}
    made.engines.fails[0] = [dies]
    made.turn(dropped=("c",))
    made.turn()
    assert made.texts["c"] == [3, 4, 5], "nobody goes on with it"


def test_new_weights_are_those_of_every_engine_also_of_one_that_is_down() -> None:
    made = world(size=3)
    made.turn("a", "b", "c", tokens=1)
    made.engines.slow = True
    made.engines.fails[1] = [dies]
    made.turn("d", "e", tokens=1)
    made.turn()
    made.engines.fails = {2: [dies]}
    made.policy.reload("second")
    assert [rank.folder for rank in made.engines.ranks] == ["second", "first", "second"]
    assert "restart 2 from second" in made.engines.log and "reload 1 second" not in made.engines.log
    assert made.policy.loads_older, "engine 1, which is not back yet"
    made.engines.slow = False
    for restart in made.policy.fleet._down.values():
        restart.started.hangs = False  # type: ignore[attr-defined]
    made.turn("f", "g", "h", tokens=1)
    assert [rank.folder for rank in made.engines.ranks] == ["second"] * 3
    assert made.engines.log[-1] == "reload 1 second" and set(made.ends) == set("abcdefgh")
    assert not made.policy.loads_older


def test_new_weights_come_although_a_dropped_response_is_in_a_round() -> None:
    made = world(size=1)
    made.engines.open_rounds = True
    made.turn("a")
    made.turn(dropped=("a",))
    made.policy.reload("second")
    assert [(rank.folder, rank.work) for rank in made.engines.ranks] == [("second", {})]
    made.engines.open_rounds, made.policy.stall_s = False, NOW_S
    made.turn("b", tokens=1)
    made.turn()
    assert made.ends == {"b": "length"} and not made.told


def test_a_folder_that_no_engine_can_read_ends_the_server() -> None:
    made = world()
    made.engines.fails[0] = [refuses]
    with pytest.raises(RankFailure, match="KeyError in reload"):
        made.policy.reload("second")
