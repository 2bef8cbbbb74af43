"""A policy's own responses as candidates for a judge."""

from __future__ import annotations

from typing import Any

import pytest

from configs.tiny.inputs import tokenizer
from orchestrator.config.labelling import SampledCandidates
from orchestrator.data.candidates import candidate_questions, candidates_of, fitting_prompt
from orchestrator.data.judge_prompts import JudgeAnswer, question_tokens
from orchestrator.data.judge_tasks import NoLabel
from orchestrator.data.record_values import BadRecord, NothingToLearn
from orchestrator.data.records import Record

CHAT = [{"role": "user", "content": "q1"}]
RECORDS = [Record("q0", ("not read",)), Record(CHAT, ())]
WORDS = tokenizer()


def section(**changes: Any) -> SampledCandidates:
    return SampledCandidates.model_validate({"model": {"path": "m"}, "response_tokens": 8, "max_tokens": 40, **changes})


def test_each_prompt_is_asked_with_another_seed_each_time() -> None:
    found = candidate_questions(RECORDS, section(responses=3, temperature=0.6), seed=1)
    assert [question.messages[0]["content"] for question in found] == ["q0"] * 3 + ["q1"] * 3
    assert [question.plain for question in found] == [True] * 3 + [False] * 3
    assert len({question.seed for question in found}) == 3 and len({question.key("m") for question in found}) == 6
    assert {(question.max_tokens, question.temperature, question.letters) for question in found} == {(8, 0.6, False)}
    assert candidate_questions(RECORDS, section(responses=3, temperature=0.6), seed=2)[0].seed != found[0].seed


def test_a_text_is_read_as_in_training_and_a_chat_through_the_template() -> None:
    text, chat = (candidate_questions([record], section(), 1)[0] for record in RECORDS)
    assert WORDS.decode(question_tokens(WORDS, text)) == "q0"
    assert WORDS.decode(question_tokens(WORDS, chat)) == "<bos><user>q1<assistant>"


def test_different_responses_take_the_form_of_their_prompt() -> None:
    said = [JudgeAnswer(text, cut=text == "b") for text in ("a", "a", "b", " ", "c", "d")]
    found = candidates_of(RECORDS, said, fewest=2)
    answers = tuple([{"role": "assistant", "content": text}] for text in "cd")
    assert found.records == [Record("q0", ("a", "b")), Record(CHAT, answers)] and found.alike == []
    assert found.counts is not None and (found.counts.responses, found.counts.cut, found.counts.alike) == (6, 1, 0)


def test_responses_that_are_all_alike_are_left_out_unless_one_is_enough() -> None:
    said = [JudgeAnswer("a"), JudgeAnswer("a"), JudgeAnswer("b"), None]
    found = candidates_of(RECORDS, said, fewest=2)
    assert found.records == [] and found.alike[0] == NoLabel("q0", ("a",), "1 different response in 2 samples")
    assert [record.responses for record in candidates_of(RECORDS, said, fewest=1).records] == [
        ("a",),
        ([{"role": "assistant", "content": "b"}],),
    ]
    assert candidates_of([], [], fewest=2).records == []


def test_a_prompt_must_leave_room_and_be_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    for record in RECORDS:
        fitting_prompt(WORDS, section(), record)
        with pytest.raises(NothingToLearn, match=r"too long for labelling\.candidates\.max_tokens"):
            fitting_prompt(WORDS, section(max_tokens=9), record)
    with pytest.raises(BadRecord, match="does not know the role"):
        fitting_prompt(WORDS, section(), Record([{"role": "robot", "content": "x"}], ()))
    plain = tokenizer()
    plain.chat_template = None
    with pytest.raises(BadRecord, match="has no chat template"):
        fitting_prompt(plain, section(), RECORDS[1])
