"""The values of a row of a data set, checked: texts, chats, prompts, probabilities. Pure; BadRecord tells what is
wrong."""

from __future__ import annotations

import math
from typing import Any

from orchestrator.data.row_files import Row
from roles.text.messages import LONE_SURROGATE, TOOLS, Tools, kind_of_value, plain_messages, plain_tools, said_in
from roles.text.sample_tokens import Text

PROBABILITY = "chosen_probability"
"""Column of a pair with the probability that `chosen` is better, such as `tetrarch label` writes."""


class BadRecord(ValueError):
    """A row that is no record; the message goes on after "row 3 "."""


class NothingToLearn(ValueError):
    """A row that is read but says nothing; it is left out and counted under this reason."""


def prompt_name(row: Row) -> str | None:
    """The column of the row's prompt; None if it has none."""
    names = [name for name in ("messages", "prompt") if name in row]
    return next((name for name in names if row[name] is not None), next(iter(names), None))


def read_prompt(row: Row) -> Text:
    """The prompt of a row that has a column for it."""
    name = prompt_name(row)
    assert name is not None
    prompt = read_text(row[name], name)
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        raise BadRecord(f"an assistant's message at the end of `{name}`, so nothing is left to answer; cut it off")
    return prompt


def read_text(value: Any, name: str) -> Text:
    """A text, or a chat of plain messages."""
    if isinstance(value, list):
        try:
            value = plain_messages(value)
        except ValueError as error:
            raise BadRecord(str(error)) from None
    if not isinstance(value, str | list):
        raise BadRecord(f"{kind_of_value(value)} in `{name}`, not text or a list of messages; correct the row")
    lone = LONE_SURROGATE.search(value) if isinstance(value, str) else None
    if lone:
        raise BadRecord(f"half of a surrogate pair ({lone[0]!r}) in `{name}`, which is no character; correct the row")
    return value


def read_tools(value: Any) -> Tools:
    """What `TOOLS` of a row says."""
    try:
        return plain_tools(value)
    except ValueError as error:
        raise BadRecord(f"in `{TOOLS}` {error}") from None


def check_filled(text: Text, name: str) -> Text:
    """The text, in which there must be more than white space."""
    said = text if isinstance(text, str) else "".join(map(said_in, text))
    if not said.strip():
        raise BadRecord(f"nothing in {name}; fill it or leave the row out")
    return text


def read_probability(value: Any) -> float:
    """What `PROBABILITY` of a row says: 1.0 if nothing. A CSV file has texts."""
    if value is None or value == "":
        return 1.0
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not 0 <= found <= 1:
        raise BadRecord(f"{value!r} in `{PROBABILITY}`; write a number from 0 to 1")
    return found
