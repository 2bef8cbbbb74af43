"""What a judge is asked, and how its answers are read."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from configs.tiny.inputs import tokenizer
from orchestrator.config.labelling import Principle
from orchestrator.data.judge_prompts import (
    JudgeAnswer,
    JudgeQuestion,
    comparison,
    completion_text,
    critique,
    first_is_better,
    letter_of,
    letter_tokens,
    revision,
)
from roles.text.prompt_tokens import chat_text

WORDS = tokenizer()


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        *(
            (text, "A")
            for text in ("A", " A", "A.", "A\n\nbecause", "(A)", "**A**", '"A"', "[A]", "A)", "A: it is short")
        ),
        *(
            (text, "B")
            for text in ("B", "Response B", "Answer: B", "answer is B.", "The better response is B", "B is better")
        ),
        *(
            (text, "A")
            for text in ("Choice: A", "The better response: **A**", "A, since it is true", "A is better", "A;")
        ),
        *(
            (text, None)
            for text in ("", " ", "a", "b", "C", "AB", "BA", "A good answer is short", "As an AI, I cannot choose")
        ),
        *(
            (text, None)
            for text in ("Both are fine", "Neither A nor B", "I prefer A", "Better", "A response that lies")
        ),
    ],
)
def test_a_letter_is_told_from_prose(text: str, letter: str | None) -> None:
    assert letter_of(text) == letter


@pytest.mark.parametrize(
    ("answer", "minimum", "probability"),
    [
        (JudgeAnswer("A"), 0.1, 1.0),
        (JudgeAnswer("B."), 0.1, 0.0),
        (JudgeAnswer("I cannot say"), 0.0, None),
        (JudgeAnswer("A", (0.6, 0.2)), 0.1, 0.75),
        (JudgeAnswer("", (0.02, 0.06)), 0.1, None),
        (JudgeAnswer("", (0.02, 0.06)), 0.0, 0.25),
        (JudgeAnswer("", (0.02, 0.06)), 0.08, 0.25),
        (JudgeAnswer("A", (0.0, 0.0)), 0.0, None),
        (JudgeAnswer("A", (1.0, 0.0)), 1.0, 1.0),
    ],
)
def test_probabilities_count_before_letters(answer: JudgeAnswer, minimum: float, probability: float | None) -> None:
    assert first_is_better(answer, minimum) == (None if probability is None else pytest.approx(probability))


def test_a_comparison_shows_the_prompt_once_and_the_responses_in_their_order() -> None:
    chat = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}]
    asked = comparison("Which?", chat, (" red", [{"role": "assistant", "content": "blue "}]), 16)
    assert asked.letters and asked.max_tokens == 16 and asked.temperature == 0
    assert asked.messages == [
        {
            "role": "user",
            "content": "Which?\n\n<prompt>\nSystem: be kind\n\nUser: hi\n</prompt>\n\n<response A>\nred\n</response A>"
            "\n\n<response B>\nblue\n</response B>\n\nWhich response is better? Answer with A or B, and nothing else.",
        }
    ]
    assert completion_text(asked).endswith("nothing else.\n\nAnswer:")


def test_a_revision_sees_the_critique_and_what_it_was_asked_for() -> None:
    principle = Principle(critique="What is rude?", revision="Be polite.")
    asked = critique(principle, "hi", "go away")
    assert asked.index("hi") < asked.index("go away") < asked.index("Critique request: What is rude?")
    wanted = revision(principle, asked, "all of it")
    assert wanted.startswith(asked) and wanted.index("Critique: all of it") < wanted.index(
        "Revision request: Be polite."
    )


def test_the_key_is_of_everything_that_the_answer_depends_on() -> None:
    question = JudgeQuestion([{"role": "user", "content": "q"}], True, 2, 0.5, 3)
    changes: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "r"}]},
        {"letters": False},
        {"max_tokens": 3},
        {"temperature": 0.6},
        {"seed": 4},
        {"plain": True},
        {"tools": ({"name": "draw"},)},
    ]
    assert [set(change) for change in changes] == [{field.name} for field in dataclasses.fields(JudgeQuestion)]
    keys = {dataclasses.replace(question, **change).key("judge") for change in changes}
    assert len({*keys, question.key("judge"), question.key("another")}) == 9
    assert question.key("judge") == dataclasses.replace(question).key("judge")


@pytest.mark.parametrize("text", ["", "plain words", "ünïcödé 漢字 🙂", "\ud800 half", "a" * 500])
def test_no_tokenizer_makes_more_tokens_than_the_bound(text: str) -> None:
    tools = ({"name": "漢字", "parameters": {text: [1, 2]}},)
    words = tokenizer()
    words.chat_template = "{% if tools %}You may use: {{ tools | tojson(indent=4) }}{% endif %}" + words.chat_template
    question = JudgeQuestion([{"role": "user", "content": text}])
    if "\ud800" not in text:
        written = WORDS(chat_text(WORDS, question.messages), add_special_tokens=False)["input_ids"]
        assert len(written) <= question.most_prompt_tokens
        question = dataclasses.replace(question, tools=tools)
        written = words(chat_text(words, question.messages, tools), add_special_tokens=False)["input_ids"]
        assert len(written) <= question.most_prompt_tokens
    assert question.most_prompt_tokens >= len(text)


def test_the_tokens_of_a_letter_are_whole_and_its_own() -> None:
    found = letter_tokens(WORDS, "A")
    assert [WORDS.decode(token).strip() for token in found] == ["A"] * len(found) and found
    assert set(found).isdisjoint(letter_tokens(WORDS, "B"))
    assert letter_tokens(WORDS, "漢") == []
    more = tokenizer()
    more.add_tokens([" A", "▁A", "AA", " B"])
    assert len(letter_tokens(more, "A")) == len(found) + 2
