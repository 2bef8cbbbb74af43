"""The responses of a policy to prompts, for a judge: what the policy is asked, and what its answers make of the
records. Pure.

    Record("1+1=", ()), sampled "2", "3", "2"     Record("1+1=", ("2", "3"))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from cluster.counts import counted
from orchestrator.config.labelling import SampledCandidates
from orchestrator.data.judge_prompts import JudgeAnswer, JudgeQuestion, question_tokens
from orchestrator.data.judge_tasks import NoLabel
from orchestrator.data.label_summary import CandidateCounts
from orchestrator.data.record_values import BadRecord, NothingToLearn
from orchestrator.data.records import Record
from roles.seeds import stable_seed
from roles.text.sample_tokens import Text, as_messages


@dataclass(frozen=True, slots=True)
class Candidates:
    """Records whose responses a judge is asked about."""

    records: Sequence[Record]
    alike: list[NoLabel] = field(default_factory=list)
    """Prompts with too few different responses."""
    counts: CandidateCounts | None = None
    """None where nothing was sampled."""


def candidate_questions(records: Sequence[Record], config: SampledCandidates, seed: int) -> list[JudgeQuestion]:
    """What the policy is asked: each prompt `config.responses` times, with another seed each time."""
    seeds = [stable_seed(seed, "candidate", copy) for copy in range(config.responses)]
    return [_question(record, config, own) for record in records for own in seeds]


def _question(record: Record, config: SampledCandidates, seed: int) -> JudgeQuestion:
    return JudgeQuestion(
        as_messages(record.prompt, "user"),
        max_tokens=config.response_tokens,
        temperature=config.temperature,
        seed=seed,
        plain=isinstance(record.prompt, str),
        tools=record.tools,
    )


def fitting_prompt(tokenizer: PreTrainedTokenizerBase, config: SampledCandidates, record: Record) -> None:
    """NothingToLearn for a prompt that leaves no room for a response, BadRecord for one that the policy cannot
    read."""
    question = _question(record, config, 0)
    if not question.plain and tokenizer.chat_template is None:
        raise BadRecord("messages, but the policy's tokenizer has no chat template; give the prompts as texts")
    try:
        size = len(question_tokens(tokenizer, question))
    except Exception as error:  # a template is a program: it raises what it likes
        raise BadRecord(f"a prompt that the policy's chat template does not take: {error}") from None
    if size + config.response_tokens > config.max_tokens:
        raise NothingToLearn("a prompt too long for labelling.candidates.max_tokens")


def candidates_of(records: Sequence[Record], answers: Sequence[JudgeAnswer | None], *, fewest: int) -> Candidates:
    """The records with their answers as responses, without empty ones and repetitions.

    Args:
        answers: as many for each record, in the order of the records; None for a prompt that was refused.
        fewest: different responses that a record needs.
    """
    if not records:
        return Candidates([], counts=CandidateCounts(0, 0, 0))
    found, alike, each = list[Record](), list[NoLabel](), len(answers) // len(records)
    for number, record in enumerate(records):
        own = answers[number * each : (number + 1) * each]
        responses = tuple(_different(record.prompt, own))
        if len(responses) >= fewest:
            found.append(Record(record.prompt, responses, tools=record.tools))
        else:
            told = f"{counted(len(responses), 'different response')} in {counted(each, 'sample')}"
            alike.append(NoLabel(record.prompt, responses, told, record.tools))
    given = [answer for answer in answers if answer is not None]
    return Candidates(found, alike, CandidateCounts(len(given), sum(one.cut for one in given), len(alike)))


def _different(prompt: Text, answers: Sequence[JudgeAnswer | None]) -> Iterator[Text]:
    texts = dict.fromkeys(answer.text for answer in answers if answer is not None and answer.text.strip())
    for text in texts:
        yield text if isinstance(prompt, str) else as_messages(text, "assistant")
