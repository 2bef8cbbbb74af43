"""Engines that fail while they serve: every response is whole, and new weights are those of all engines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.config import Deadlines
from cluster.errors import ClusterError, DeadlineExceeded, RankFailure
from cluster.ranks.failures import Death
from cluster.ranks.identity import Identity
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.config.serving import ServingConfig
from orchestrator.groups import serving_roles
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.serving_roles import SLICE_S, SOUNDNESS_PROBE, TRIAL_SLICE_S, ServedPolicy
from orchestrator.groups.suspects import MOST_REMEMBERED, Suspects
from roles.serving_engine import EngineWork, NewTokens, ServingEngine, WantedResponse

PROMPT = [7, 7]
LONG_S, NOW_S = 100.0, 0.0


@dataclass(eq=False)
class Rank:
    """An engine: its tokens are their places, so that one that goes on in another place shows."""

    identity: Identity
    folder: str
    work: dict[str, WantedResponse] = field(default_factory=dict)

    slices: list[float] = field(default_factory=list)

    def advance(self, work: EngineWork, slice_s: float) -> list[NewTokens]:
        self.slices.append(slice_s)
        for name in work.dropped:
            del self.work[name]
        self.work |= {one.name: one for one in work.wanted}
        return [self._grow(one) for one in list(self.work.values())]

    def _grow(self, one: WantedResponse) -> NewTokens:
        token = len(one.token_ids)
        self.work[one.name] = replace(one, token_ids=[*one.token_ids, token], begun=one.begun + 1)
        if one.begun + 1 < one.max_tokens:
            return NewTokens(one.name, [token], None)
        del self.work[one.name]
        return NewTokens(one.name, [token], "length")


@dataclass
class Answer:
    """A call that has been answered, has failed, or never ends."""

    value: Any = None
    error: ClusterError | None = None
    hangs: bool = False
    receipts: tuple[()] = ()

    @property
    def over(self) -> bool:
        return not self.hangs

    def result(self, deadline_s: float, *, since: float | None = None) -> Any:
        if self.error:
            raise self.error
        return [self.value]


@dataclass
class Engines:
    """Engines that fail when they are told to."""

    size: int = 2
    role: str = "rollout"
    slow: bool = False
    """Whether no restart is over unless it is waited for."""
    fails: dict[int, list[Callable[[Identity], Answer]]] = field(default_factory=dict)
    """Engine → what becomes of its next calls."""
    log: list[str] = field(default_factory=list)
    folder: str = "first"
    open_rounds: bool = False
    """Whether no round is over."""
    deadly: dict[str, int] = field(default_factory=dict)
    """Prompt → number of tokens of its response when the engine dies."""

    def __post_init__(self) -> None:
        self.ranks = [Rank(Identity("rollout", n, "node", "log"), self.folder) for n in range(self.size)]

    def __len__(self) -> int:
        return self.size

    def check_alive(self, numbers: list[int]) -> None:
        pass

    def restart(self, numbers: list[int]) -> Any:
        for number in numbers:
            self.log.append(f"restart {number} from {self.folder}")
            old = self.ranks[number].identity
            self.ranks[number] = Rank(replace(old, life=old.life + 1), self.folder)
        return Answer(hangs=self.slow)

    def remake(self, change: Callable[[tuple[Any, ...]], tuple[Any, ...]]) -> None:
        @dataclass
        class Setup:
            model_path: str

        self.folder = change((Setup(self.folder),))[0].model_path

    def call_one(self, number: int, method: Any, *arguments: Any) -> Answer:
        rank = self.ranks[number]
        if planned := self.fails.get(number):
            return planned.pop(0)(rank.identity)
        if method is ServingEngine.reload:
            self.log.append(f"reload {number} {arguments[0]}")
            rank.folder, dropped = arguments
            rank.work = {name: one for name, one in rank.work.items() if name not in dropped}
            return Answer(error=RankFailure("it is generating", who=rank.identity) if rank.work else None)
        for one in [*rank.work.values(), *arguments[0].wanted]:
            if one.begun == self.deadly.get(letter_of(one)) and one.name not in arguments[0].dropped:
                return dies(rank.identity)
        return Answer(rank.advance(*arguments), hangs=self.open_rounds)


def letter_of(one: WantedResponse) -> str:
    return chr(one.token_ids[: len(PROMPT) + 1][-1])


def dies(who: Identity) -> Answer:
    return Answer(error=Death(f"{who} died in advance: signal 9", who=who))


def hangs(who: Identity) -> Answer:
    return Answer(error=DeadlineExceeded("rollout.advance did not end within 60 s:", [who]), hangs=True)


def refuses(who: Identity) -> Answer:
    return Answer(error=RankFailure(f"{who} raised KeyError in reload", who=who, exception="builtins.KeyError"))


@dataclass
class World:
    engines: Engines
    policy: ServedPolicy
    told: list[str]
    texts: dict[str, list[int]] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)

    def turn(self, *wanted: str, dropped: tuple[str, ...] = (), tokens: int = 4) -> None:
        asked = [WantedResponse(name, [*PROMPT, ord(name[0])], tokens, 1.0, 1.0, seed=5) for name in wanted]
        for new in self.policy.advance(asked, dropped):
            self.texts.setdefault(new.name, []).extend(new.token_ids)
            if new.finish:
                self.ends[new.name] = new.finish


def world(allowed: int = 6, stall_s: float = LONG_S, **engines: Any) -> World:
    group, told = Engines(**engines), list[str]()
    recovery = Recovery(RecoveryConfig(engine_failures_per_hour=allowed), told.append, has_steps=False)
    made: Any = group
    return World(group, ServedPolicy(made, Deadlines(), recovery, stall_s), told)


WHOLE = [3, 4, 5, 6]


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
    for _ in range(5):
        made.turn()
    assert made.texts["b"] == WHOLE and "it was late: rollout.advance did not end within 60 s" in made.told[0]


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


def test_what_two_engines_failed_with_is_given_up_and_the_rest_goes_on() -> None:
    made = world(size=3, slow=True)
    made.engines.fails = {0: [dies], 1: [dies]}
    made.turn("a", "b", "c")
    assert made.texts == {"c": [3]} and not made.ends
    made.engines.fails = {2: [dies]}
    made.engines.slow = False
    made.turn()
    assert made.ends == {"a": "failed"}, "it had just begun; c was under way, and b waited"
    for _ in range(6):
        made.turn()
    assert made.ends == {"a": "failed", "b": "length", "c": "length"} and made.texts["b"] == made.texts["c"] == WHOLE


def test_a_prompt_that_kills_engines_is_found_among_others_refused_and_not_counted() -> None:
    made = world(allowed=2, size=1, deadly={"x": 0, "y": 0})
    made.turn("a", tokens=1)
    for letter in "xy":
        made.turn(letter, *(f"{letter}{number}" for number in range(1, 4)), f"b{letter}", f"c{letter}")
        for _ in range(12):
            made.turn()
        same = [made.ends.pop(name) for name in list(made.ends) if name[0] == letter]
        assert same == ["failed"] * 4, "all responses to that prompt"
        assert (
            made.ends.pop(f"b{letter}"),
            made.ends.pop(f"c{letter}"),
        ) == ("length", "length")
        assert made.texts[f"b{letter}"] == WHOLE
    deaths = [line for line in made.told if "is started again" in line]
    assert len(deaths) == 4
    assert [line for line in made.told if "are not counted" in line] == [
        "the engines answer other prompts: 2 of their failures are not counted, since they came with prompts that were "
        "given up"
    ] * 2
    assert made.told[-1].startswith("refused for 60 min, since 2 engines failed while") and made.told[-1].endswith(
        f"token ids 7 7 {ord('y')}"
    )
    for number in range(5):
        made.turn(f"x again {number}")
        assert made.ends[f"x again {number}"] == "refused"
    assert len([line for line in made.told if "is started again" in line]) == 4


def test_prompts_that_several_engines_answer_at_once_are_not_mistaken_for_the_reason() -> None:
    made = world(allowed=3, size=2, deadly={"x": 0})
    made.turn("a0", tokens=1)
    for letter in "xy":
        made.engines.deadly = {letter: 0}
        good = [f"{name}{letter}{row}" for name in "bc" for row in range(2)]
        made.turn(*good[:2], f"{letter}0", f"{letter}1", *good[2:])
        for _ in range(16):
            made.turn()
        assert [made.ends.pop(f"{letter}{row}") for row in range(2)] == ["failed", "failed"]
        assert [made.texts[name] for name in good] == [WHOLE] * 4
        made.turn(f"{letter}2")
        assert made.ends.pop(f"{letter}2") == "refused"
    assert len([line for line in made.told if "is started again" in line]) <= 6


def test_a_prompt_whose_client_leaves_and_asks_again_is_found_too() -> None:
    made = world(allowed=2, size=1, deadly={"x": 0})
    made.turn("a", tokens=1)
    for number in range(6):
        made.turn(f"x{number}")
        made.turn(dropped=(f"x{number}",))
        made.turn()
    assert made.ends["x5"] == "refused"


def test_new_weights_come_after_a_prompt_was_given_up_that_a_sound_engine_still_answers() -> None:
    made = world(size=2)
    made.turn("a", tokens=1)
    for _ in range(2):
        made.engines.fails[0] = [dies]
        made.turn(*(["x1", "x2"] if "x2" not in made.policy._under_way else []), tokens=9)
    assert made.ends.pop("x1") == made.ends.pop("x2") == "failed"
    made.turn()
    made.policy.reload("second")
    assert [(rank.folder, rank.work) for rank in made.engines.ranks] == [("second", {})] * 2


def test_a_prompt_that_hangs_engines_is_found_though_its_clients_leave_first() -> None:
    made = world(size=1)
    made.turn("a", tokens=1)
    for number in range(2):
        made.engines.fails[0] = [hangs]
        made.turn(f"x{number}", *(["b"] if not number else []))
        made.turn(dropped=(f"x{number}",))
        made.policy.stall_s = NOW_S
        made.turn()
        made.policy.stall_s = LONG_S
        for _ in range(6):
            made.turn()
    made.turn("x2", "b2")
    for _ in range(4):
        made.turn()
    assert made.ends == {"a": "length", "b": "length", "x2": "refused", "b2": "length"}
    assert made.texts["b"] == WHOLE and made.told[-1].endswith(f"token ids 7 7 {ord('x')}")


def test_a_prompt_that_kills_engines_is_refused_though_nothing_has_been_answered_before() -> None:
    made = world(deadly={"x": 0})
    for number in range(8):
        made.turn(f"x{number}")
        for _ in range(4):
            made.turn()
    assert list(made.ends.values()) == ["failed", *["refused"] * 7]
    assert len([line for line in made.told if "is started again" in line]) == 2


def test_a_new_request_waits_for_hundreds_of_suspects_as_short_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, failures = list[int](), Suspects.failures

    def counted(suspects: Suspects, prompt: Sequence[int]) -> int:
        looked.append(1)
        return failures(suspects, prompt)

    made, size = world(size=1), 100
    made.turn(*(f"{chr(ord('Ā') + number)}" for number in range(size)), tokens=1000)
    made.engines.fails[0] = [dies]
    made.turn()
    monkeypatch.setattr(Suspects, "failures", counted)
    for _ in range(size + 1):
        made.turn(*(["b"] if "b" not in made.policy._under_way else []))
    assert made.texts["b"] == [3]
    assert made.engines.ranks[0].slices == [TRIAL_SLICE_S] * size + [SLICE_S]
    assert TRIAL_SLICE_S < SLICE_S / 10 and len(looked) < 4 * size, "not of every suspect in every round"


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


def test_engines_that_answer_nothing_else_are_not_sound() -> None:
    made = world(allowed=3, size=1, deadly={"x": 0})
    made.turn("a", tokens=1)
    made.engines.deadly[letter_of(SOUNDNESS_PROBE)] = 0
    with pytest.raises(Death, match="number 6 within an hour"):  # 3, and what one prompt can cause of one engine
        for number in range(9):
            made.turn(f"x{number}")
    assert not any("not counted" in line or "refused" in line for line in made.told)


def test_new_weights_come_while_it_is_open_whether_the_engines_are_sound() -> None:
    made = world(size=1, deadly={"x": 0})
    made.turn("a", tokens=2)
    made.turn()
    made.engines.open_rounds = True
    made.turn("x")
    made.turn()
    made.turn()
    assert list(made.engines.ranks[0].work) == ["probe"]
    made.policy.reload("second")
    assert [(rank.folder, rank.work) for rank in made.engines.ranks] == [("second", {})]


def test_what_two_engines_failed_with_long_after_it_began_is_given_up_with_its_company_but_not_refused() -> None:
    made = world(allowed=2, size=1)
    made.turn("a", tokens=1)
    made.turn("b", "c", tokens=9)
    for _ in range(2):
        made.engines.fails[0] = [dies]
        for _ in range(4):
            made.turn()
    assert made.ends == {"a": "length", "b": "failed", "c": "failed"}
    made.turn("b2", "c2")
    for _ in range(8):
        made.turn()
    assert made.texts["b2"] == made.texts["c2"] == WHOLE and "are not counted" in made.told[-1]
    assert not made.policy.suspects.failures([*PROMPT, ord("b")])


def test_a_refused_prompt_is_tried_again_with_new_weights_and_after_an_hour() -> None:
    recovery, now = Recovery(RecoveryConfig(), clock=lambda: now[0]), [0.0]
    suspects = Suspects(recovery)
    for moment in (0.0, 4000.0):
        now[0] = moment
        assert suspects.blame({(1,): suspects.failures([1])}) == (set() if not moment else {(1,)})
        suspects.blame({(1,): suspects.failures([1])})
        suspects.answered([2])
        assert suspects.refused([1])
        now[0] += 3700
        assert not suspects.refused([1])
    now[0] -= 3700
    assert suspects.refused([1])
    suspects.forget()
    assert not suspects.refused([1]) and not suspects.failures([1])


def test_more_prompts_than_are_remembered_die_with_an_engine() -> None:
    suspects = Suspects(Recovery(RecoveryConfig()))
    assert suspects.blame({(number,): 0 for number in range(2 * MOST_REMEMBERED)}) == set()
    assert [suspects.failures([number]) for number in (0, 2 * MOST_REMEMBERED - 1)] == [0, 1]


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


@pytest.mark.parametrize(("allowed", "size"), [(1, 1), (1, 8), (6, 8)])
def test_one_request_ends_no_server_however_few_failures_it_survives(allowed: int, size: int) -> None:
    """All engines answer the same prompt at the same time, and die; then one more with it alone."""
    made = world(allowed=allowed, size=size, deadly={"x": 0})
    made.turn(*(f"x{number}" for number in range(size)))
    for _ in range(8):
        made.turn()
    made.turn("x", "b")
    for _ in range(4):
        made.turn()
    assert made.texts["b"] == WHOLE and made.ends.pop("x") == "refused" and made.ends.pop("b") == "length"
    assert made.ends == {f"x{number}": "failed" for number in range(size)}
    assert len([line for line in made.told if "is started again" in line]) == size + 1
    assert not made.policy.recovery._failures["engine_failures_per_hour"]


def test_a_prompt_that_is_answered_after_a_failure_has_not_caused_it() -> None:
    made = world(allowed=1, size=1)
    made.engines.fails[0] = [dies]
    made.turn("a")
    for _ in range(6):
        made.turn()
    assert made.texts == {"a": WHOLE}
    made.turn("b", "c", tokens=9)
    made.engines.fails[0] = [dies]
    with pytest.raises(Death, match="number 2 within an hour"):
        made.turn()


def test_deadlines_that_pass_long_after_each_other_do_not_end_the_server() -> None:
    made = world(size=1, stall_s=NOW_S)
    for name in "abc":
        made.engines.fails[0] = [hangs]
        for _ in range(6):
            made.turn(*([name] if name not in made.texts else []))
    assert made.texts == dict.fromkeys("abc", WHOLE)


def test_a_prompt_that_hangs_every_engine_does_not_end_the_server_either() -> None:
    made = world(size=2, stall_s=NOW_S, slow=True)
    made.engines.fails = {0: [hangs], 1: [hangs]}
    made.turn("a", "b")
    made.engines.slow = False
    for _ in range(8):
        made.turn()
    assert made.texts == dict.fromkeys("ab", WHOLE)


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
    made.engines.slow = False
    for restart in made.policy.fleet._down.values():
        restart.started.hangs = False  # type: ignore[attr-defined]
    made.turn("f", "g", "h", tokens=1)
    assert [rank.folder for rank in made.engines.ranks] == ["second"] * 3
    assert made.engines.log[-1] == "reload 1 second" and set(made.ends) == set("abcdefgh")


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
