"""A model judge without engines: what it would be asked, and what is made of what it says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.tiny.inputs import tokenizer
from orchestrator.config.labelling import AskingBudgetConfig, LabellingRun
from orchestrator.config.loading import validate_root
from orchestrator.data.answer_file import open_answers
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion, letter_tokens
from orchestrator.groups.judge_engines import FatalQuestion
from orchestrator.groups.resolved_models import Models
from orchestrator.stages import asked_model
from orchestrator.stages.asked_model import AskedModel
from orchestrator.stages.asking import Asking, Refusal
from roles.judge_engine import EngineAnswer, EngineQuestion

WORDS = tokenizer()
A, B = (letter_tokens(WORDS, letter)[0] for letter in "AB")


class Engines:
    """The last question is answered first."""

    def __init__(self) -> None:
        self.asked: list[EngineQuestion] = []

    def answers(self, questions: list[EngineQuestion]) -> Iterator[EngineAnswer]:
        self.asked += questions
        for question in reversed(questions):
            found = {token: math.log(0.5 if token == A else 0.2) for token in question.reply.candidates}
            yield EngineAnswer(question.row, [A], found, cut=False)


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AskedModel, Engines]]:
    engines = Engines()
    (tmp_path / "model.safetensors").write_bytes(b"12")

    @contextmanager
    def started(config: Any, models: Any, tell: Any) -> Iterator[Engines]:
        yield engines

    monkeypatch.setattr(asked_model, "resolve_models", lambda config, roles: Models(tmp_path, {}, WORDS))
    monkeypatch.setattr(asked_model, "judge_engines", started)
    said = {"type": "model", "model": {"path": "m"}, "max_tokens": 60}
    labelling = {"output": "o", "data": {"path": "d"}, "judge": said}
    config = validate_root(LabellingRun, {"labelling": labelling}).engines
    assert config is not None
    with ExitStack() as stack:
        yield AskedModel(config, stack), engines


def asked(text: str, **more: Any) -> JudgeQuestion:
    return JudgeQuestion([{"role": "user", "content": text}], **more)


def test_letters_have_the_probabilities_of_their_tokens(judge: tuple[AskedModel, Engines]) -> None:
    model, engines = judge
    found = dict(model.answers([asked(f"q{n}", letters=True) for n in range(3)]))
    assert sorted(found) == [0, 1, 2]
    size = len(WORDS("<bos><user>q0<assistant>", add_special_tokens=False)["input_ids"])
    answer = found[0]
    assert isinstance(answer, JudgeAnswer) and answer.letters is not None
    assert answer.letters == pytest.approx((0.5, 0.2)) and (answer.prompt_tokens, answer.completion_tokens) == (size, 1)
    assert [question.row for question in engines.asked] == [0, 1, 2]
    question = engines.asked[0]
    assert WORDS.decode(question.token_ids) == "<bos><user>q0<assistant>"
    assert question.reply.max_tokens == 1 and set(question.reply.candidates) >= {A, B}


def test_text_is_sampled_as_asked(judge: tuple[AskedModel, Engines]) -> None:
    model, engines = judge
    ((_, answer),) = model.answers([asked("q", max_tokens=7, temperature=0.4, seed=5)])
    assert isinstance(answer, JudgeAnswer) and (answer.text, answer.letters) == ("A", None)
    reply = engines.asked[0].reply
    assert (reply.max_tokens, reply.temperature, reply.seed, reply.candidates) == (7, 0.4, 5, ())


def test_a_question_that_does_not_fit_is_refused(judge: tuple[AskedModel, Engines]) -> None:
    model, _ = judge
    found = dict(model.answers([asked("x" * 200, letters=True), asked("q", letters=True)]))
    assert isinstance(found[0], Refusal) and "labelling.judge.max_tokens=60" in found[0].reason
    assert isinstance(found[1], JudgeAnswer)
    odd = JudgeQuestion([{"role": "nobody", "content": "q"}])
    ((_, refusal),) = model.answers([odd])
    assert isinstance(refusal, Refusal) and "nobody" in refusal.reason


def test_a_folder_that_is_written_again_is_another_judge(judge: tuple[AskedModel, Engines], tmp_path: Path) -> None:
    model, _ = judge
    before = model.name
    assert model.name == before
    (tmp_path / "model.safetensors").write_bytes(b"123")
    assert model.name != before
    before = model.name
    (tmp_path / "chat_template.jinja").write_text("a")
    assert model.name != before, "its answers follow from the template too"


def test_a_judge_is_looked_up_once(tmp_path: Path) -> None:
    class Noted:
        looked_up = 0

        @property
        def name(self) -> str:
            self.looked_up += 1
            return "judge"

        def answers(self, questions: Sequence[JudgeQuestion]) -> Iterator[tuple[int, JudgeAnswer | Refusal]]:
            yield from ((number, JudgeAnswer("A")) for number in range(len(questions)))

    judge = Noted()
    with open_answers(tmp_path / "answers.jsonl") as file:
        asking = Asking(judge, file, AskingBudgetConfig(), None)
        assert all(asking.answers([asked(f"q{number}") for number in range(9)]))
    assert (judge.looked_up, asking.asked) == (1, 9)


def test_a_question_that_kills_engines_is_asked_by_no_later_command(
    judge: tuple[AskedModel, Engines], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, engines = judge
    answers = engines.answers

    def dying(questions: list[EngineQuestion]) -> Iterator[EngineAnswer | FatalQuestion]:
        fatal = [question for question in questions if "fatal" in WORDS.decode(question.token_ids)]
        yield from answers([question for question in questions if question not in fatal])
        yield from (FatalQuestion(question.row) for question in fatal)

    monkeypatch.setattr(engines, "answers", dying)
    questions = [asked("fatal"), asked("q")]
    for told in ({}, {"reused": 1}):
        engines.asked.clear()
        with open_answers(tmp_path / "answers.jsonl") as file:
            asking = Asking(model, file, AskingBudgetConfig(), None)
            found = asking.answers(questions)
            refusal = asking.refusal(questions[0])
        assert found[0] is None and found[1] is not None and asking.stopped is None
        assert refusal is not None and refusal.reason.startswith("engines fail with it: 3 have")
        assert (len(engines.asked), asking.reused) == (1 - len(told), told.get("reused", 0))
