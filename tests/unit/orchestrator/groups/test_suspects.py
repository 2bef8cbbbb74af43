"""Prompts with which the engines of a server fail: which are given up or refused, and which failures do not count."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cluster.ranks.failures import Death
from orchestrator.config.recovery import RecoveryConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.groups.serving_roles import SLICE_S, SOUNDNESS_PROBE, TRIAL_SLICE_S
from orchestrator.groups.suspects import MOST_REMEMBERED, Suspects
from tests.unit.orchestrator.groups.failing_engines import LONG_S, NOW_S, PROMPT, WHOLE, dies, hangs, letter_of, world


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


def test_only_failures_of_one_prompt_within_an_hour_may_be_forgiven() -> None:
    hours = [0.0]
    suspects = Suspects(Recovery(RecoveryConfig(), clock=lambda: hours[0] * 3600.0))
    for prompt in range(5):
        suspects.blame({(prompt,): 0})
    assert suspects.undecided == 1
    suspects.blame({(3,): 0})
    assert suspects.undecided == 2
    hours[0] = 1.1
    assert suspects.undecided == 0


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


def test_a_prompt_that_hangs_every_engine_does_not_end_the_server_either() -> None:
    made = world(size=2, stall_s=NOW_S, slow=True)
    made.engines.fails = {0: [hangs], 1: [hangs]}
    made.turn("a", "b")
    made.engines.slow = False
    made.turn_until(lambda: made.ends.keys() == set("ab"))
    assert made.texts == dict.fromkeys("ab", WHOLE)
