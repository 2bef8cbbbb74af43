"""Texts and chats → the tokens of a prompt, including those at its beginning and end. The only place that does this.

- A **text** begins once with what the tokenizer puts before a text (BOS, if any): a text that already begins with it
  gets no second one. What the tokenizer would put after a text (EOS) is left out, because the response follows.
- A **chat** is written by the chat template, which writes BOS itself where the model wants one; nothing is added.
- **Token ids** of a data set stay as they are.

    <bos> is put before a text, <eos> after it     "hi", "<bos>hi"  →  <bos>hi, <bos>hi
    chat template                                  {"role": "user", "content": "hi"}  →  <bos><user>hi<assistant>
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from transformers import PreTrainedTokenizerBase

from roles.text.messages import Messages, Tools, plain_messages, with_objects
from roles.text.template_date import dated
from roles.text.time_limit import time_limit

T = TypeVar("T")

PROBE = "a b c"
"""A text whose tokens show what a tokenizer puts before and after a text."""

MESSAGE_ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages that a chat template need not name."""

TEMPLATE_S = 5.0
"""Seconds in which a chat template must have written one chat."""

PROMPT_CHARACTERS = 120
"""Most characters of a text that `shown_prompt` prints; a longer text loses its middle."""

FEW = 8
"""Most token ids that `shown_prompt` prints; a longer list loses its middle."""


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, chat: bool) -> list[list[int]]:
    """Token ids of each text; `chat`: the texts were written by the chat template."""
    if not texts:
        return []
    found: list[list[int]] = [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    before = [] if chat else _around(tokenizer)[0]
    return [ids if begins_text(ids, before, tokenizer) else before + ids for ids in found]


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Any, tools: Tools = ()) -> str:
    """A chat up to the beginning of the response, written by the template. ValueError if a message is not text or has
    an unknown role; TimeoutError if the template does not end."""
    plain = plain_messages(messages)
    check_roles(tokenizer, plain)
    with time_limit(TEMPLATE_S):
        return written_chat(tokenizer, plain, tools, prompt=True)


def written_chat(tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Tools, *, prompt: bool = False) -> str:
    """What the template makes of plain messages; `prompt`: up to the beginning of a response. Its own error if it
    refuses them."""
    more: dict[str, Any] = {"tools": list(tools)} if tools else {}
    more |= dated(tokenizer.chat_template)

    def write(turns: Messages) -> str:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt, **more))

    return with_calls(write, messages)


def with_calls(write: Callable[[Messages], T], messages: Messages) -> T:
    """What `write` makes of messages, whose tool calls a template gets as vLLM gives them to it: with objects as their
    arguments. A template that can only join texts gets them as they are."""
    given = with_objects(messages)
    try:
        return write(given)
    except TypeError:
        if given == messages:
            raise
        return write(messages)


def writes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template writes the tools of a chat."""
    return "tools" in str(tokenizer.chat_template)


def shown_prompt(tokenizer: PreTrainedTokenizerBase, given: Any, ids: Sequence[int], *, chat: bool) -> str:
    """A prompt for the user to read: as it was given, and as the model reads it, with special tokens visible."""
    read = tokenizer.decode(list(ids), skip_special_tokens=False)
    few = " ".join(map(str, ids if len(ids) <= FEW else [*ids[: FEW - 3], "…", *ids[-3:]]))
    lines = [f"given: {_quoted(given)}", f"read:  {_quoted(read)}", f"       {len(ids)} tokens: {few}"]
    before, after = ([], []) if chat else _around(tokenizer)
    rule = [f"{tokenizer.decode(before)} begins a text, once"] if before else []
    rule += [f"{tokenizer.decode(after)}, which the tokenizer puts after a text, is left out"] if after else []
    return "\n".join([*lines, *([f"rule:  {'; '.join(rule)}"] if rule else [])])


def check_roles(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> None:
    """ValueError for an unknown role: most templates write whatever role they are given, or take it for the
    assistant's."""
    for number, role in enumerate(message["role"] for message in messages):
        if role not in MESSAGE_ROLES and not re.search(rf"\b{re.escape(role)}\b", str(tokenizer.chat_template)):
            near = difflib.get_close_matches(role, MESSAGE_ROLES, n=1)
            fix = f"did you mean `{near[0]}`?" if near else f"use {', '.join(MESSAGE_ROLES)}"
            raise ValueError(f"it does not know the role {role!r} of message {number}; {fix}")


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts before a text, and those after it."""
    plain: list[int] = list(tokenizer(PROBE, add_special_tokens=False)["input_ids"])
    whole: list[int] = list(tokenizer(PROBE)["input_ids"])
    for start in range(len(whole) - len(plain) + 1):
        end = start + len(plain)
        if whole[start:end] == plain:
            return whole[:start], whole[end:]
    return [], []


def begins_text(ids: list[int], before: list[int], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `ids` begin with `before`, or with its last token; white space in front does not count."""
    if not before:
        return True
    if before[-1] not in ids:
        return False
    front = [token for token in ids[: ids.index(before[-1])] if token not in before]
    return not tokenizer.decode(front, skip_special_tokens=False).strip()


def _quoted(value: Any) -> str:
    """`value` in one line, without the middle of a long text."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    half = PROMPT_CHARACTERS // 2
    return text if len(text) <= PROMPT_CHARACTERS else f"{text[:half]} … {text[-half:]}"
