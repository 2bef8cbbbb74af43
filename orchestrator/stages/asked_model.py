"""A model on the vLLM engines, a judge or the policy that is judged: questions flow in, answers flow out; the engines
start with the first question."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from orchestrator.config.sampling import SamplingConfig
from orchestrator.data.judge_prompts import LETTERS, JudgeAnswer, JudgeQuestion, letter_tokens, question_tokens
from orchestrator.groups.judge_engines import FatalQuestion, JudgeFleet, judge_engines
from orchestrator.groups.question_trials import FATAL
from orchestrator.groups.recovery import TellUser, untold
from orchestrator.groups.resolved_models import Models, resolve_models
from orchestrator.stages.asking import Refusal
from roles.generation.sampling import Reply
from roles.judge_engine import EngineAnswer, EngineQuestion
from roles.model_files.folders import files_of_model

QUESTIONS_AT_A_TIME = 1024
"""Questions that are sent to the engines together."""


class AskedModel:
    """The model in a folder."""

    def __init__(
        self, config: SamplingConfig, started: ExitStack, key: str = "labelling.judge", tell: TellUser = untold
    ) -> None:
        """`started`: ends the engines. `key`: key path of the model's section. `tell`: see `Builder`."""
        self._config, self._started, self._key, self._tell = config, started, key, tell
        self._models: Models = resolve_models(config, ())
        self._candidates = {letter: letter_tokens(self._models.tokenizer, letter) for letter in LETTERS}
        self._engines: JudgeFleet | None = None

    @property
    def name(self) -> str:
        """The folder and what its files look like: a folder that is written again, or has another chat template, is
        another judge."""
        folder = self._models.actor
        return " ".join([str(folder.resolve()), *map(_looks, files_of_model(folder))])

    def answers(self, questions: Sequence[JudgeQuestion]) -> Iterator[tuple[int, JudgeAnswer | Refusal]]:
        """As `Judge` says."""
        for first in range(0, len(questions), QUESTIONS_AT_A_TIME):
            part = range(first, min(first + QUESTIONS_AT_A_TIME, len(questions)))
            fitting = dict[int, EngineQuestion]()
            for row in part:
                found = self._read(row, questions[row])
                if isinstance(found, Refusal):
                    yield row, found
                else:
                    fitting[row] = found
            if fitting:
                yield from self._answered(fitting)

    def _read(self, row: int, question: JudgeQuestion) -> EngineQuestion | Refusal:
        try:
            token_ids = question_tokens(self._models.tokenizer, question)
        except Exception as error:  # a template is a program: it raises what it likes
            return Refusal(f"the chat template does not take the question: {error}")
        most = self._config.longest_sample
        if len(token_ids) + question.max_tokens > most:
            return Refusal(f"{len(token_ids)} tokens and an answer are more than {self._key}.max_tokens={most}")
        if question.letters:
            every = tuple(token for letter in LETTERS for token in self._candidates[letter])
            return EngineQuestion(row, token_ids, Reply(1, candidates=every))
        return EngineQuestion(row, token_ids, Reply(question.max_tokens, question.temperature, question.seed % 2**62))

    def _answered(self, questions: dict[int, EngineQuestion]) -> Iterator[tuple[int, JudgeAnswer | Refusal]]:
        for answer in self._ready().answers(list(questions.values())):
            if isinstance(answer, FatalQuestion):
                yield (
                    answer.row,
                    Refusal(f"engines fail with it: {FATAL} have, the last one with it alone", lasting=True),
                )
            else:
                yield answer.row, self._told(questions[answer.row], answer)

    def _told(self, question: EngineQuestion, answer: EngineAnswer) -> JudgeAnswer:
        letters = None
        if question.reply.candidates:
            first, second = (
                sum(math.exp(answer.logprobs[token]) for token in self._candidates[letter]) for letter in LETTERS
            )
            letters = first, second
        text = str(self._models.tokenizer.decode(answer.token_ids, skip_special_tokens=True))
        return JudgeAnswer(text, letters, len(question.token_ids), len(answer.token_ids), answer.cut)

    def _ready(self) -> JudgeFleet:
        if self._engines is None:
            self._engines = self._started.enter_context(judge_engines(self._config, self._models, self._tell))
        return self._engines


def _looks(file: Path) -> str:
    found = file.stat()
    return f"{file.name}:{found.st_size}:{found.st_mtime_ns}"
