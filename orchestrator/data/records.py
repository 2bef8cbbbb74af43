"""Rows of any supported format → records: a prompt and the responses to it. Pure.

`FORMATS` is the table of formats: which columns make one, and the function that reads a row of it. A record is the same
for all of them:

    {"prompt": "1+1=", "chosen": "2", "rejected": "3"}             Record("1+1=", ("2", "3"), (1.0, 0.0))
    the same with "chosen_probability": 0.9                        Record("1+1=", ("2", "3"), (1.0, 0.0), 0.9)
    {"chosen": "1+1= 2", "rejected": "1+1= 3"}                     Record("1+1=", (" 2", " 3"), (1.0, 0.0))
    {"prompt": "1+1=", "responses": ["2", "3"], "scores": [5, 1]}  Record("1+1=", ("2", "3"), (5.0, 1.0))
    {"prompt": "1+1=", "completion": "3", "label": false}          Record("1+1=", ("3",), (0.0,))
    {"instruction": "Add.", "input": "1 1", "output": "2"}         Record([user "Add.\n\n1 1"], ([assistant "2"],), ())
    {"text": "1+1=2 and so on."}                                   Record("", ("1+1=2 and so on.",), ())

Prompts and responses are texts or lists of messages.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.data.record_values import (
    PROBABILITY,
    BadRecord,
    NothingToLearn,
    check_filled,
    prompt_name,
    read_probability,
    read_prompt,
    read_text,
    read_tools,
)
from orchestrator.data.row_files import Row
from roles.text.messages import TOOLS, Messages, Tools, common_beginning, kind_of_value
from roles.text.sample_tokens import Text, as_messages

RecordKind = Literal["preferences", "labels", "demonstrations", "candidates"]
"""What a row says: which of several responses is better, whether one is good, how to respond; or only what responses
there are, for a judge."""


@dataclass(frozen=True, slots=True)
class Record:
    """A prompt and the responses to it."""

    prompt: Text
    """An empty list where a response is a whole conversation."""
    responses: tuple[Text, ...]
    values: tuple[float, ...] = ()
    """Of each response: the higher is preferred; 1.0 or 0.0 for a label; none for a demonstration."""
    certainty: float = 1.0
    """Probability that a response with a higher value is the better one: a soft label; 1.0 if the row does not say."""
    tools: Tools = ()
    """Of the chat."""


@dataclass(frozen=True, slots=True)
class Format:
    """One form that the rows of a source may have."""

    kind: RecordKind
    needs: tuple[str, ...]
    """The columns that make it."""
    read: Callable[[Row, bool], Record]
    """A row, and whether the responses of the source repeat their prompts."""
    prompt: bool = True
    """Whether the row also needs its prompt in `prompt` or `messages`."""
    prompt_may_repeat: bool = False
    """Whether responses may begin with their prompt."""
    also: tuple[str, ...] = ()
    """Columns besides the prompt and its tools that are read if they are there."""

    def record(self, row: Row, repeated: bool) -> Record:
        """What `read` makes of a row, with its tools."""
        return replace(self.read(row, repeated), tools=read_tools(row.get(TOOLS)))


def format_of(names: list[str], kind: RecordKind, where: str) -> Format:
    """The first format of `kind` whose columns are there; ValueError names the columns and the formats."""
    found = [form for form in FORMATS if form.kind == kind]
    for form in found:
        if set(form.needs) <= set(names) and (not form.prompt or {"prompt", "messages"} & set(names)):
            return form
    ways = "; or ".join(", ".join([*(["prompt (or messages)"] if form.prompt else []), *form.needs]) for form in found)
    lacking = _lacking(found[0], names)
    raise ValueError(
        f"{where} lacks {', '.join(lacking)}; it has {', '.join(names)}; rename them, or say with `columns` what they "
        f"are. Rows of {kind} have {ways}"
    )


def _lacking(form: Format, names: list[str]) -> list[str]:
    lacking = [name for name in form.needs if name not in names]
    if form.prompt and not {"prompt", "messages"} & set(names):
        lacking.append("prompt (or messages)")
    return lacking


def repeats_prompt(row: Row) -> bool | None:
    """Whether both responses of a pair of texts begin with the row's prompt; None for a row that does not tell."""
    prompt, *responses = [row.get(name) for name in (prompt_name(row) or "prompt", "chosen", "rejected")]
    if not isinstance(prompt, str) or not prompt or not all(isinstance(text, str) for text in responses):
        return None
    return all(str(text).startswith(prompt) for text in responses)


# Preferences


def _pair(row: Row, repeated: bool) -> Record:
    record, probability = _compared(row, repeated), read_probability(row.get(PROBABILITY))
    if probability == 0.5:
        raise NothingToLearn("each response is as likely to be the better one")
    if probability < 0.5:
        return replace(record, responses=record.responses[::-1], certainty=1 - probability)
    return replace(record, certainty=probability)


def _compared(row: Row, repeated: bool) -> Record:
    chosen, rejected = read_text(row["chosen"], "chosen"), read_text(row["rejected"], "rejected")
    if isinstance(chosen, list) and isinstance(rejected, list) and chosen[0]["role"] in ("system", "user"):
        return _ranked(*_common(chosen, rejected), (1.0, 0.0))  # the prompt stands in them, whatever `prompt` says
    if not isinstance(chosen, str) and not isinstance(rejected, str) and prompt_name(row) is None:
        raise BadRecord("no prompt: `chosen` begins with an assistant's message; add the messages before it")
    prompt = read_prompt(row) if prompt_name(row) else None
    if prompt is None:
        if not isinstance(chosen, str) or not isinstance(rejected, str):
            raise BadRecord("no prompt, and a text beside a chat in `chosen` and `rejected`; write both alike")
        return _ranked(*_common_text(chosen, rejected), (1.0, 0.0))
    repeats = repeats_prompt(row) if repeated else None
    if repeats is False:
        raise BadRecord("a response that does not begin with its prompt, as those of most rows do; correct it")
    size = len(prompt) if repeats else 0
    return _ranked(prompt, (chosen[size:], rejected[size:]), (1.0, 0.0))


def _common(chosen: Messages, rejected: Messages) -> tuple[Messages, tuple[Text, ...]]:
    """Whole conversations: the messages that both begin with, and what follows in each."""
    size = common_beginning(chosen, rejected)
    if not any(message["role"] == "user" for message in chosen[:size]):
        raise BadRecord("`chosen` and `rejected` with no common beginning, which would be the prompt")
    while size > 1 and (size == min(len(chosen), len(rejected)) or chosen[size - 1]["role"] == "assistant"):
        size -= 1  # a response is at least one message, and a prompt ends with somebody else's
    return chosen[:size], (chosen[size:], rejected[size:])


TURN = "\n\nAssistant:"
"""What stands before a response in the dialogues of Anthropic's HH data."""


def _common_text(chosen: str, rejected: str) -> tuple[str, tuple[Text, ...]]:
    """Whole dialogues: the text that both begin with, up to the last turn or else to a space; what follows in each."""
    prompt = chosen[: common_beginning(chosen, rejected)]
    turn = prompt.rfind(TURN)
    size = turn + len(TURN) if turn >= 0 else max((m.start() for m in re.finditer(r"\s", prompt)), default=0)
    if not prompt[:size].strip():
        raise BadRecord("no prompt, and `chosen` and `rejected` with no common beginning, which would be the prompt")
    return chosen[:size], (chosen[size:], rejected[size:])


def _responses(row: Row, repeated: bool) -> Record:
    responses = row["responses"]
    if not isinstance(responses, list) or len(responses) < 2:
        raise BadRecord(f"{kind_of_value(responses)} in `responses`, not a list of two or more")
    texts = tuple(read_text(response, "responses") for response in responses)
    scores, ranks = _numbers(row, "scores", len(texts)), _numbers(row, "ranks", len(texts))
    if scores is not None:
        return _ranked(read_prompt(row), texts, scores)
    return _ranked(read_prompt(row), texts, tuple(-rank for rank in ranks or range(1, len(texts) + 1)))


def _numbers(row: Row, name: str, count: int) -> tuple[float, ...] | None:
    values = row.get(name)
    if values is None:
        return None
    sound = isinstance(values, list) and all(type(v) in (int, float) and math.isfinite(v) for v in values)
    if not sound or len(values) != count:
        raise BadRecord(f"no number for each of its {count} responses in `{name}`")
    return tuple(map(float, values))


def _ranked(prompt: Text, responses: tuple[Text, ...], values: tuple[float, ...]) -> Record:
    if len(set(values)) == 1:
        raise NothingToLearn("all responses are ranked alike")
    for response in responses:
        check_filled(response, "a response")
    if all(response == responses[0] for response in responses):
        raise NothingToLearn("the responses are the same")
    return Record(prompt, responses, tuple(map(float, values)))


# Labels and demonstrations

LABELS = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
"""What `label` may be; a CSV file has texts."""


def _labelled(row: Row, repeated: bool) -> Record:
    label = LABELS.get(str(row["label"]).lower())
    if label is None:
        raise BadRecord(f"{row['label']!r} in `label`; write true or false")
    return Record(
        read_prompt(row), (check_filled(read_text(row["completion"], "completion"), "`completion`"),), (label,)
    )


def _completed(row: Row, repeated: bool) -> Record:
    return Record(read_prompt(row), (check_filled(read_text(row["completion"], "completion"), "`completion`"),))


def _instruction(row: Row, repeated: bool) -> Record:
    asked, said = (read_text(row[name], name) for name in ("instruction", "output"))
    given = read_text(row.get("input") or "", "input")
    if not all(isinstance(part, str) for part in (asked, given, said)):
        raise BadRecord("a chat in `instruction`, `input` or `output`; write text, or put the chat into `messages`")
    question = f"{asked}\n\n{given}" if given else str(asked)
    return Record(as_messages(question, "user"), (as_messages(check_filled(said, "`output`"), "assistant"),))


def _conversation(row: Row, repeated: bool) -> Record:
    return Record([], (_spoken(read_text(row["messages"], "messages"), "messages"),))


def _plain_text(row: Row, repeated: bool) -> Record:
    text = read_text(row["text"], "text")
    if not isinstance(text, str):
        raise BadRecord("a chat in `text`; put it into `messages`")
    return Record("", (check_filled(text, "`text`"),))


SPEAKERS = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}
"""What `from` says in a row of `conversations` → the role."""


def _shared(row: Row, repeated: bool) -> Record:
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
        raise BadRecord('no list of turns in `conversations`; write [{"from": "human", "value": "…"}]')
    unknown = [turn.get("from") for turn in turns if turn.get("from") not in SPEAKERS]
    if unknown:
        raise BadRecord(f"a turn from {unknown[0]!r} in `conversations`; known are {', '.join(SPEAKERS)}")
    messages = [{"role": SPEAKERS[turn["from"]], "content": turn.get("value")} for turn in turns]
    return Record([], (_spoken(read_text(messages, "conversations"), "conversations"),))


def _spoken(messages: Text, name: str) -> Messages:
    if isinstance(messages, str):
        raise BadRecord(f"text in `{name}`, not a list of messages")
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRecord(f"no message of the assistant in `{name}`, so there is nothing to learn")
    return messages


# Candidates


def _unranked(row: Row, repeated: bool) -> Record:
    return replace(_compared(row, repeated), values=())


def _candidates(row: Row, repeated: bool) -> Record:
    responses = row["responses"]
    if not isinstance(responses, list) or not responses:
        raise BadRecord(f"{kind_of_value(responses)} in `responses`, not a list of responses")
    texts = [check_filled(read_text(response, "responses"), "a response") for response in responses]
    different = tuple(text for place, text in enumerate(texts) if text not in texts[:place])
    return Record(read_prompt(row), different)


def _unanswered(row: Row, repeated: bool) -> Record:
    return Record(check_filled(read_prompt(row), "the prompt"), ())


FORMATS = (
    Format("preferences", ("chosen", "rejected"), _pair, prompt=False, prompt_may_repeat=True, also=(PROBABILITY,)),
    Format("preferences", ("responses",), _responses, also=("scores", "ranks")),
    Format("labels", ("completion", "label"), _labelled),
    Format("demonstrations", ("conversations",), _shared, prompt=False),
    Format("demonstrations", ("instruction", "output"), _instruction, prompt=False, also=("input",)),
    Format("demonstrations", ("completion",), _completed),
    Format("demonstrations", ("messages",), _conversation, prompt=False),
    Format("demonstrations", ("text",), _plain_text, prompt=False),
    Format("candidates", ("chosen", "rejected"), _unranked, prompt=False, prompt_may_repeat=True),
    Format("candidates", ("responses",), _candidates),
    Format("candidates", ("completion",), _completed),
    Format("candidates", (), _unanswered),
)
"""For each kind, the formats in the order in which they are tried."""

LEARNED_COLUMNS = frozenset({"prompt", "messages", TOOLS}.union(*([*form.needs, *form.also] for form in FORMATS)))
"""Every column that a row of any format may be learned from."""
