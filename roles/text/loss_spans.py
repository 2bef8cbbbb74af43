"""A chat → its text as the tokenizer's chat template writes it, and where in it the assistant speaks. No tokens yet.

    [user "hi", assistant "yes"]  →  "<bos><user>hi<assistant>yes<eos>", [(19, 27)]: "yes<eos>"

A span holds all that the model has to write in a turn: the content and the mark that ends the turn, but no line break
behind that mark. The spans are those of the template's own generation marks (`{% generation %}`). A template without
them is rendered turn by turn: a span begins where the prompt for a response ends, and ends where the chat up to this
turn does. Where later turns change how a turn is written (Qwen 3 leaves out earlier thoughts), its content is located.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from roles.text.messages import Messages, Tools, calls_alone, common_beginning
from roles.text.prompt_tokens import with_calls, written_chat
from roles.text.template_date import dated

Span = tuple[int, int]
"""Begin and end, in characters."""

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
STAND_IN = "\ue000content\ue001"
"""Stands for a content whose place is looked for: private characters, which no text has."""


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, tools: Tools = ()
) -> tuple[str, list[Span]]:
    """The chat's text, and one span for each turn of the assistant. ValueError if the template does not say where.

    `messages` are plain (`roles.text.messages.plain_messages`). What the template raises is raised.
    """
    template = _template(tokenizer, tools)
    if MARKS.search(template):
        write = partial(
            render_jinja_template,
            tools=list(tools) or None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
            **dated(template),
        )
        texts, spans = with_calls(lambda turns: write(conversations=[turns]), messages)
        return texts[0], [(start, end) for start, end in spans[0]]

    render = _renderer(tokenizer, tools)
    text = render(messages)
    ends = tuple(token.content for token in tokenizer.added_tokens_decoder.values())
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    return text, [_without_layout(text, _turn(render, messages, number, text), ends) for number in turns]


def response_spans(
    tokenizer: PreTrainedTokenizerBase, asked: Messages, said: Messages, tools: Tools = ()
) -> tuple[str, list[Span]]:
    """The text of the chat `asked + said`, and the spans of `assistant_spans` that are in `said`. Errors are its."""
    messages = [*asked, *said]
    text, spans = assistant_spans(tokenizer, messages, tools)
    earlier, turns = (sum(message["role"] == "assistant" for message in part) for part in (asked, messages))
    if not earlier or not MARKS.search(_template(tokenizer, tools)):
        return text, spans[earlier:]
    try:  # of marks a turn may have several, or none
        _, end = _content(_renderer(tokenizer, tools), messages, len(asked) - 1, text)
    except ValueError:
        if len(spans) != turns:
            raise
        return text, spans[earlier:]
    return text, [span for span in spans if span[0] >= end]


def _template(tokenizer: PreTrainedTokenizerBase, tools: Tools) -> str:
    """A tokenizer may have a template of its own for chats with tools."""
    return tokenizer.get_chat_template(tools=list(tools) or None)


def _renderer(tokenizer: PreTrainedTokenizerBase, tools: Tools) -> Callable[..., str]:
    def render(part: Messages, prompt: bool = False) -> str:
        return written_chat(tokenizer, part, tools, prompt=prompt)

    return render


def _turn(render: Callable[..., str], messages: Messages, number: int, text: str) -> Span:
    """The span of the turn `number`."""
    before = render(messages[:number], prompt=True) if number else ""
    until = render(messages[: number + 1])
    known = before != "" and text.startswith(before)
    if known and text.startswith(until):
        return len(before), len(until)
    if known and until.startswith(before) and calls_alone(messages[number]):
        # Of the turn as it is written at the end of a chat, all but what is left out in front of the calls here:
        turn = until[len(before) :]
        here = next((turn[cut:] for cut in range(len(turn)) if text.startswith(turn[cut:], len(before))), "")
        if here:
            return len(before), len(before) + len(here)
    start, end = _content(render, messages, number, text)
    content = messages[number]["content"].strip()
    if not content:
        raise ValueError(f"an empty message of the assistant (number {number}); fill it, or leave it out")
    # As far as the turn is written here as it is at the end of a chat:
    tail = until.rpartition(content)[2]
    end += common_beginning(tail, text[end:])
    lead = until[len(before) :].partition(content)[0] if before and until.startswith(before) else ""
    start -= len(lead) if text.endswith(lead, 0, start) else 0
    return len(before) if known else start, end


def _content(render: Callable[..., str], messages: Messages, number: int, text: str) -> Span:
    """Where the content of the message `number` stands in `text`."""
    replaced: dict[str, Any] = {**messages[number], "content": STAND_IN}
    front, found, back = render([*messages[:number], replaced, *messages[number + 1 :]]).partition(STAND_IN)
    if not found or not text.startswith(front) or not text.endswith(back) or len(text) < len(front) + len(back):
        raise ValueError(
            f"a message (number {number}) that cannot be found in what the chat template writes; put "
            "{% generation %} and {% endgeneration %} around the assistant's part of the template, once"
        )
    return len(front), len(text) - len(back)


def _without_layout(text: str, span: Span, ends: tuple[str, ...]) -> Span:
    """The span without white space behind the token that ends it."""
    start, end = span
    written = text[start:end].rstrip()
    return (start, start + len(written)) if written.endswith(ends) else span
