"""Comparisons and revisions as dialogues with a judge."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from orchestrator.config.labelling import Constitution, LabellingConfig
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion
from orchestrator.data.judge_tasks import Asked, Compared, Revised, compare, pairs_of, revisable, revise
from orchestrator.data.labels import JudgeVerdict
from orchestrator.data.record_values import NothingToLearn
from orchestrator.data.records import Record

RULES = Constitution.model_validate(
    {"principles": [{"critique": f"critique {n}", "revision": f"revision {n}"} for n in range(4)]}
)


def section(**changes: Any) -> LabellingConfig:
    judge = {"type": "endpoint", "url": "http://h/v1/completions", "model": "m"}
    return LabellingConfig.model_validate({"output": "o", "data": {"path": "d"}, "judge": judge, **changes})


def carried_out(task: Asked, *answers: list[JudgeAnswer]) -> tuple[list[list[JudgeQuestion]], Any]:
    """What the task asks, and its result."""
    asked, result = [next(task)], None
    for own in answers:
        try:
            asked.append(task.send(own))
        except StopIteration as end:
            result = end.value
    return asked, result


def said(*texts: str) -> list[list[JudgeAnswer]]:
    return [[JudgeAnswer(text)] for text in texts]


def test_both_orders_are_asked_and_the_answers_belong_to_them() -> None:
    answers = [JudgeAnswer("A", (0.6, 0.2)), JudgeAnswer("prose")]
    (asked,), result = carried_out(compare("q", ("red", "blue"), section(), 9), answers)
    first, second = (question.messages[0]["content"] for question in asked)
    assert first.index("red") < first.index("blue") and second.index("blue") < second.index("red")
    verdict = JudgeVerdict(pytest.approx(0.75), None)  # type: ignore[arg-type]
    assert result == Compared("q", ("red", "blue"), verdict, ("A", "prose"))
    assert [question.max_tokens for question in asked] == [9, 9]


def test_all_pairs_or_some_that_are_always_the_same() -> None:
    record = Record("q", tuple("abcde"))
    assert pairs_of(record, None, 1) == list(itertools.combinations("abcde", 2))
    some = pairs_of(record, 3, 1)
    assert len(set(some)) == 3 and some == pairs_of(record, 3, 1) and set(some) <= set(pairs_of(record, None, 1))
    assert len({tuple(pairs_of(record, 3, seed)) for seed in range(20)}) > 5
    assert pairs_of(record, 99, 1) == pairs_of(record, None, 1)


def test_a_response_is_criticised_and_revised() -> None:
    task = revise(Record("q", (" rude ",)), RULES, section(reply_tokens=33, temperature=0.6), seed=1)
    (first, second), result = carried_out(task, *said(" too rude ", "kind "))
    assert result == Revised("q", " rude ", " kind"), "after the same white space as the original"
    text = second[0].messages[0]["content"]
    assert "Critique: too rude\n" in text
    (rule,) = {n for n in range(4) if f"critique {n}" in first[0].messages[0]["content"]}
    assert f"revision {rule}" in text, "critique and revision are of one principle"
    assert {(question.max_tokens, question.temperature, question.letters) for question in (*first, *second)} == {
        (33, 0.6, False)
    }


def test_each_round_revises_what_the_last_one_made_by_a_principle_of_its_own() -> None:
    record = Record([{"role": "user", "content": "q"}], ([{"role": "assistant", "content": "bad"}],))
    task = revise(record, RULES, section(revisions=3), seed=1)
    asked, result = carried_out(task, *said("c0", "better", "c1", "good", "c2", "best"))
    assert result == Revised(record.prompt, record.responses[0], [{"role": "assistant", "content": "best"}])
    texts = [questions[0].messages[0]["content"] for questions in asked]
    assert ["bad" in text for text in texts] == [True, True, False, False, False, False]
    assert "better" in texts[2] and "good" in texts[4]
    picked = set()
    for seed in range(30):
        first = next(revise(record, RULES, section(), seed=seed))[0].messages[0]["content"]
        picked |= {n for n in range(4) if f"critique {n}" in first}
    assert picked == {0, 1, 2, 3}


def test_without_a_response_the_judge_gives_the_first_one() -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    asked, result = carried_out(revise(Record(chat, ()), RULES, section(), 1), *said(" mine ", "c", "better"))
    assert asked[0][0].messages == chat
    assert result == Revised(
        chat, [{"role": "assistant", "content": "mine"}], [{"role": "assistant", "content": "better"}]
    )
    _, result = carried_out(revise(Record("q", ()), RULES, section(), 1), *said(" mine", "c", "better"))
    assert result == Revised("q", " mine", " better")


@pytest.mark.parametrize("last", [JudgeAnswer("half a sen", cut=True), JudgeAnswer("  ")])
def test_a_revision_that_is_cut_or_empty_is_none(last: JudgeAnswer) -> None:
    _, result = carried_out(revise(Record("q", ("a",)), RULES, section(), 1), [JudgeAnswer("c", cut=True)], [last])
    assert result == Revised("q", "a", None)
    _, result = carried_out(revise(Record("q", ()), RULES, section(), 1), [last])
    assert result.revised is None


def test_one_text_cannot_replace_messages_or_calls() -> None:
    said = {"role": "assistant", "content": "a"}
    for responses in ((), ("a",), ([said],)):
        revisable(Record("q", responses))
    with pytest.raises(NothingToLearn, match="several messages"):
        revisable(Record("q", ([said, said],)))
    with pytest.raises(NothingToLearn, match="calls tools"):
        revisable(Record("q", ([{**said, "tool_calls": [{"name": "draw"}]}],)))
