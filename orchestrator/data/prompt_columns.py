"""The prompts in a column of a data set (texts, chats or token ids) as texts and tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from orchestrator.data.row_files import Rows, Where
from orchestrator.errors import ConfigError
from roles.text.messages import LONE_SURROGATE, Tools, kind_of_value, plain_messages, plain_tools
from roles.text.prompt_tokens import chat_text, prompt_tokens, writes_tools
from roles.text.template_errors import BrokenTemplate, refused_by_template

COLUMNS = ("prompt", "messages", "prompt_token_ids")
"""Columns that may hold a row's prompt, if no key names another column."""

OTHER_COLUMNS = ("input", "question", "instruction", "query")
"""Columns that hold the prompt in data sets of other systems, if there is none of `COLUMNS`."""

PromptKind = Literal["text", "chat", "token ids"]
"""The form of a prompt in a data set."""

NAMED: dict[str, PromptKind] = {"messages": "chat", "prompt_token_ids": "token ids"}
"""Columns whose name determines the form; for other columns the first row's value does."""


@dataclass(frozen=True, slots=True)
class ReadPrompts:
    """The prompts of a column: `ReadPrompts("chat", ["<user>hi<assistant>"], [[3, 76, 77, 4]])`."""

    kind: PromptKind
    """The form of the prompts in all rows."""
    texts: list[str]
    """Texts after the chat template, `[rows]`."""
    token_ids: list[list[int]]
    """Token ids, `[rows][tokens]`."""


def prompt_column(column: str | None, names: list[str], where: Where) -> str:
    """The name of the prompts' column in a data set with the columns `names`: `column` (of `prompts.column`), or the
    one of `COLUMNS` that exists, else of `OTHER_COLUMNS`."""
    if column is not None:
        if column not in names and column.partition(".")[0] not in names:
            raise ConfigError(
                f"{where} has no column `{column}` (prompts.column); it has {', '.join(names)}; rename one, or "
                "change prompts.column"
            )
        return column
    present = [name for name in COLUMNS if name in names] or [name for name in OTHER_COLUMNS if name in names]
    if not present:
        raise ConfigError(
            f"{where} has none of the columns {', '.join((*COLUMNS, *OTHER_COLUMNS))}; it has {', '.join(names)}; say "
            "which one holds the prompts with prompts.column, or rename one"
        )
    if len(present) > 1:
        raise ConfigError(f"{where} has the columns {' and '.join(present)}; say which one with prompts.column")
    return present[0]


def column_values(rows: Rows, column: str, where: Where) -> list[Any]:
    """The values of a column. `a.b` means the values of the key `b` in the column `a`, unless a column has that
    name."""
    if column in rows.column_names:
        return rows[column]
    first, *keys = column.split(".")
    values = rows[first]
    for key in keys:
        row = next((row for row, value in enumerate(values) if not isinstance(value, dict) or key not in value), None)
        if row is not None:
            raise ConfigError(f"{where.row(row)} has no `{column}` (prompts.column); fill it, or leave the row out")
        values = [value[key] for value in values]
    return values


def tools_of(column: str | None, rows: Rows, where: Where) -> list[Tools] | None:
    """The tools of each row's chat, from the column of `prompts.tools`; None without that key."""
    if column is None:
        return None
    if column not in rows.column_names:
        raise ConfigError(f"{where} has no column `{column}` (prompts.tools); it has {', '.join(rows.column_names)}")
    return [_tools(value, f"{where.row(row)} has in `{column}`") for row, value in enumerate(rows[column])]


def _tools(value: Any, where: str) -> Tools:
    try:
        return plain_tools(value)
    except ValueError as error:
        raise ConfigError(f"{where} {error}") from None


def read_prompts(
    column: str,
    values: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    where: Where,
    tools: list[Tools] | None = None,
) -> ReadPrompts:
    """Texts, chats or token ids (the same form in all rows) as `roles.text.prompt_tokens` makes them. `tools`: of each
    row, for its chat template."""
    kind = NAMED.get(column) or _kind_of(values[0], column, where)
    if tools is not None and (kind != "chat" or not writes_tools(tokenizer)):
        why = f"the prompts in `{column}` are {kind}" if kind != "chat" else "the chat template of actor.model has none"
        raise ConfigError(f"prompts.tools is for chats whose template writes tools, and {why}; set it to null")
    if kind == "token ids":
        return ReadPrompts(kind, *_read_token_ids(column, values, tokenizer, where))
    chat = kind == "chat"
    texts = _read_chats(column, values, tokenizer, where, tools) if chat else _read_texts(column, values, where)
    check_characters(texts, column, where)
    return ReadPrompts(kind, texts, prompt_tokens(tokenizer, texts, chat=chat))


def check_characters(texts: list[str], column: str, where: Where) -> None:
    """Raise ConfigError for half of a surrogate pair, which JSON can contain and no tokenizer accepts."""
    for row, text in enumerate(texts):
        lone = LONE_SURROGATE.search(text)
        if lone:
            raise ConfigError(
                f"{where.row(row)} has half of a surrogate pair ({lone[0]!r}) in `{column}`, which is no "
                "character; correct the row"
            )


def _kind_of(value: Any, column: str, where: Where) -> PromptKind:
    match value:
        case str():
            return "text"
        case [{}, *_]:
            return "chat"
        case [int(), *_]:
            return "token ids"
    raise ConfigError(
        f"{where.row(0)} has {kind_of_value(value)} in `{column}`, which is neither text, nor a chat, nor token ids; "
        "correct the row, or say another column with prompts.column"
    )


def _read_texts(column: str, values: list[Any], where: Where) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ConfigError(
                f"{where.row(row)} has {kind_of_value(value)} in `{column}`, not text as row 0 has; correct the row"
            )
    return values


def _read_chats(
    column: str,
    values: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    where: Where,
    tools: list[Tools] | None,
) -> list[str]:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{where} has chats in `{column}`, but the tokenizer of actor.model has no chat template; add "
            "chat_template.jinja to the model folder, or give the prompts as text"
        )
    given: list[Tools] = tools or [()] * len(values)
    return [_render(value, tokenizer, where.row(row), given[row]) for row, value in enumerate(values)]


def _render(messages: Any, tokenizer: PreTrainedTokenizerBase, where: str, tools: Tools) -> str:
    try:
        plain = plain_messages(messages)
    except ValueError as error:
        raise ConfigError(f"{where} has {error}") from None
    if plain[-1]["role"] == "assistant":
        raise ConfigError(f"{where} ends with an assistant's message, so nothing is left to answer; cut it off")
    try:
        return chat_text(tokenizer, plain, tools)
    except Exception as error:  # a template is a program: it raises what it likes
        told = refused_by_template(error, "does")
        raise ConfigError(f"{where}{': ' if isinstance(told, BrokenTemplate) else ' '}{told}") from error


def _read_token_ids(
    column: str, values: list[Any], tokenizer: PreTrainedTokenizerBase, where: Where
) -> tuple[list[str], list[list[int]]]:
    size = len(tokenizer)
    for row, ids in enumerate(values):
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ConfigError(f"{where.row(row)} has no list of whole numbers in `{column}`; correct the row")
        outside = [i for i in ids if not 0 <= i < size]
        if outside:
            raise ConfigError(
                f"{where.row(row)} has token id {outside[0]}, outside the tokenizer's {size} (0 to {size - 1}); "
                "tokenise with the actor's tokenizer"
            )
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in values], values
