"""The messages of a chat, from a data set or an environment → messages whose contents are text.

A content is text, or a list of parts of type `text`, which are joined:

    {"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}
    {"role": "user", "content": "a b"}

The tools of a chat stand beside it: a list of JSON schemas, or such a list as JSON text.

Imports only the standard library, because an environment's child process imports it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Messages = list[dict[str, Any]]

Tools = tuple[dict[str, Any], ...]
"""JSON schemas that a chat template writes too; none for most chats."""

TOOLS = "tools"
"""The column of a data set with the tools of each chat, where no key names another: as TRL and OpenAI have it."""

MESSAGES = "messages"
"""The column of prompts that are chats."""

FORM = '[{"role": "user", "content": "…"}]'
"""An example of a chat, for error messages."""

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair: JSON can write it, and no tokenizer takes it."""


def kind_of_value(value: Any) -> str:
    """What a value is, in words of the file it comes from: `5` is "a number"; a type that JSON lacks has its name."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return {**kinds, int: "a number", float: "a number"}.get(type(value), type(value).__name__)


def common_beginning(one: Sequence[Any], other: Sequence[Any]) -> int:
    """With how many equal items two texts or lists begin."""
    differ = (place for place, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(differ, min(len(one), len(other)))


def plain_tools(value: Any) -> Tools:
    """A list of JSON schemas, or such a list as JSON text; none for None. ValueError says what else it is.

    Keys with the value None are dropped, at any depth: a table has them if another row's schema has a value.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f"text that is no JSON ({error}); write a list of JSON schemas") from None
    else:
        value = without_null_keys(value)
    tools = [] if value is None else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{kind_of_value(value)}, not a list of JSON schemas; correct the row")
    return tuple(tools)


def without_null_keys(value: Any) -> Any:
    """`value` without keys whose value is None, at any depth: an Arrow table has them if another row has a value."""
    if isinstance(value, dict):
        return {key: without_null_keys(part) for key, part in value.items() if part is not None}
    return [without_null_keys(part) for part in value] if isinstance(value, list) else value


def plain_messages(messages: Any) -> Messages:
    """Every message with text as its content; ValueError names a message that cannot be read as text, and the reason.

    Keys with the value None are dropped: a table has them if another message has a value. The content of a message that
    calls tools may be missing: it is empty.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ValueError(f"no list of messages; write {FORM}")
    return [_plain(number, message) for number, message in enumerate(messages)]


def calls_alone(message: Mapping[str, Any]) -> bool:
    """Whether a plain message calls tools, and says nothing beside that."""
    return bool(message.get("tool_calls")) and not message["content"].strip()


def with_objects(messages: Messages) -> Messages:
    """`messages` as chat templates read tool calls: their arguments are objects, which OpenAI writes as JSON text.

    As in vLLM, arguments that are missing or no object become `{}`, and an empty list of calls is left out.
    """
    return [_with_objects(message) for message in messages]


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if message["role"] != "assistant" or not isinstance(calls, list):
        return message
    others = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**others, "tool_calls": [_call_with_object(call) for call in calls]} if calls else others


def _call_with_object(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _call_with_object(call["function"])}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    return {**call, "arguments": arguments if isinstance(arguments, dict) else {}}


def said_in(message: Mapping[str, Any]) -> str:
    """The content of a plain message, and the tools that it calls as JSON."""
    calls = message.get("tool_calls")
    return "\n".join([*([message["content"]] if message["content"] or not calls else []), *map(_json, calls or [])])


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _plain(number: int, message: dict[str, Any]) -> dict[str, Any]:
    present = {key: value for key, value in message.items() if value is not None}
    if present.get("tool_calls"):
        present.setdefault("content", "")
    if "role" not in present or "content" not in present:
        raise ValueError(f"a message without role or content (number {number}); write {FORM}")
    if not isinstance(present["role"], str):
        raise ValueError(f"a message (number {number}) with the role {present['role']!r}, which is not text")
    content = present["content"]
    if isinstance(content, list):
        content = "".join(_text_of(number, part) for part in content)
    if not isinstance(content, str):
        kind = kind_of_value(content)
        raise ValueError(
            f"a message (number {number}) whose content is {kind}, not text or a list of parts; write {FORM}"
        )
    lone = LONE_SURROGATE.search(content)
    if lone:
        raise ValueError(
            f"a message (number {number}) with half of a surrogate pair ({lone[0]!r}), which is no character; fix it"
        )
    return {**present, "content": content}


def _text_of(number: int, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    told = f"of type {kind}" if kind not in (None, "text") else f"{_short(part)}"
    raise ValueError(
        f"a message (number {number}) with a part {told}; only text is read, as "
        '{"type": "text", "text": "…"}: leave other parts out'
    )


def _short(part: Any, size: int = 80) -> str:
    text = repr(part)
    return text if len(text) <= size else f"{text[:size]}…"
