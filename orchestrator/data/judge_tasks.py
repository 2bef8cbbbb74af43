"""What is done with the responses to one prompt, as a dialogue with a judge. Pure.

A task is a generator: it yields the questions that can be asked at the same time, is sent their answers, and returns
its result.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Generator
from dataclasses import dataclass

from orchestrator.config.labelling import Constitution, LabellingConfig
from orchestrator.data.judge_prompts import (
    JudgeAnswer,
    JudgeQuestion,
    comparison,
    critique,
    first_is_better,
    revision,
    transcript,
)
from orchestrator.data.labels import JudgeVerdict
from orchestrator.data.record_values import NothingToLearn
from orchestrator.data.records import Record
from roles.seeds import stable_seed
from roles.text.messages import Messages, Tools
from roles.text.sample_tokens import Text, as_messages

Asked = Generator[list[JudgeQuestion], list[JudgeAnswer], "Compared | Revised"]
"""A dialogue under way."""


@dataclass(frozen=True, eq=False, slots=True)
class Task:
    """A dialogue with the judge, and what it is about."""

    prompt: Text
    responses: tuple[Text, ...]
    dialogue: Asked
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class NoLabel:
    """Responses to a prompt of which nothing is learned, and why."""

    prompt: Text
    responses: tuple[Text, ...]
    reason: str
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class Compared:
    """Two responses to a prompt, and what the judge says of them."""

    prompt: Text
    responses: tuple[Text, Text]
    verdict: JudgeVerdict
    said: tuple[str, str] = ("", "")
    """The judge's answers in the two orders."""
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class Revised:
    """A response to a prompt before and after its revisions."""

    prompt: Text
    original: Text
    revised: Text | None
    """None if the judge wrote nothing, or reached its most tokens in a revision."""
    tools: Tools = ()


def comparable(record: Record) -> None:
    """NothingToLearn unless there are two responses to compare."""
    if len(record.responses) < 2:
        raise NothingToLearn("fewer than two different responses")


def revisable(record: Record) -> None:
    """NothingToLearn for a response that no single text can replace."""
    if record.responses and isinstance(record.responses[0], list) and len(record.responses[0]) > 1:
        raise NothingToLearn("a response of several messages, which cannot be revised")
    if record.responses and isinstance(record.responses[0], list) and record.responses[0][0].get("tool_calls"):
        raise NothingToLearn("a response that calls tools, which cannot be revised")


def pairs_of(record: Record, most: int | None, seed: int) -> list[tuple[Text, Text]]:
    """All pairs of the responses, or `most` of them drawn at random, always the same ones."""
    pairs = list(itertools.combinations(record.responses, 2))
    if most is None or most >= len(pairs):
        return pairs
    source = random.Random(stable_seed(seed, "pairs", transcript(record.prompt)))
    return [pairs[place] for place in sorted(source.sample(range(len(pairs)), most))]


def compare(prompt: Text, responses: tuple[Text, Text], config: LabellingConfig, answer_tokens: int) -> Asked:
    """Ask in both orders which of two responses is better."""
    orders = (responses, responses[::-1])
    answers = yield [comparison(config.question, prompt, shown, answer_tokens) for shown in orders]
    first, second = answers
    forward, backward = (first_is_better(answer, config.minimum_mass) for answer in answers)
    return Compared(prompt, responses, JudgeVerdict(forward, backward), (first.text, second.text))


def revise(record: Record, constitution: Constitution, config: LabellingConfig, seed: int) -> Asked:
    """Criticise and revise the first response; without one, the judge's own."""
    prompt = record.prompt
    if record.responses:
        original = record.responses[0]
    else:
        own = stable_seed(seed, "first")
        (answer,) = yield [_reply(config, as_messages(prompt, "user"), own, record.tools)]
        if answer.cut or not answer.text.strip():
            return Revised(prompt, "", None)
        original = as_messages(answer.text.strip(), "assistant") if isinstance(prompt, list) else answer.text
    text = transcript(original)
    for turn in range(config.revisions):
        own = stable_seed(seed, "principle", turn, transcript(prompt), text)
        principle = random.Random(own).choice(constitution.principles)
        asked = critique(principle, prompt, text)
        (found,) = yield [_reply(config, as_messages(asked, "user"), own)]
        wanted = revision(principle, asked, found.text.strip())
        (better,) = yield [_reply(config, as_messages(wanted, "user"), own)]
        text = better.text.strip()
        if better.cut or not text:
            return Revised(prompt, original, None)
    return Revised(prompt, original, in_place_of(original, text))


def in_place_of(original: Text, text: str) -> Text:
    """Another response in the form of the original: text after the same white space, or the content of its message."""
    if isinstance(original, str):
        return original[: len(original) - len(original.lstrip())] + text
    return [{**original[0], "content": text}]


def _reply(config: LabellingConfig, messages: Messages, seed: int, tools: Tools = ()) -> JudgeQuestion:
    tokens, temperature = config.reply_tokens, config.temperature
    return JudgeQuestion(messages, max_tokens=tokens, temperature=temperature, seed=seed, tools=tools)
