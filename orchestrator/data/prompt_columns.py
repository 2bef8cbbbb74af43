"""The column of prompts in a data set: texts, chats or token ids → texts and tokens."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from orchestrator.config.data import PromptsConfig
from orchestrator.errors import ConfigError
from roles.text.messages import plain_messages
from roles.text.prompt_tokens import chat_text, prompt_tokens

COLUMNS = ("prompt", "messages", "prompt_token_ids")
"""What a row's prompt may stand in."""


def prompt_column(config: PromptsConfig, names: list[str], where: str) -> str:
    """The one of `COLUMNS` that holds the prompts of a data set with the columns `names`."""
    present = [name for name in COLUMNS if name in names]
    if config.column is not None:
        if config.column not in names:
            raise ConfigError(
                f"{where} has no column `{config.column}` (prompts.column); it has {', '.join(names)}; rename one, or "
                "change prompts.column"
            )
        return config.column
    if not present:
        raise ConfigError(
            f"{where} has none of the columns {', '.join(COLUMNS)}; it has {', '.join(names)}; rename one"
        )
    if len(present) > 1:
        raise ConfigError(f"{where} has the columns {' and '.join(present)}; say which one with prompts.column")
    return present[0]


def read_prompts(
    column: str, values: list[Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[str], list[list[int]]]:
    """Texts, chats or token ids → texts `[rows]` and token ids `[rows][tokens]`, as `prompt_tokens` makes them.

    `column` is one of `COLUMNS`.
    """
    if column == "prompt_token_ids":
        return _read_token_ids(values, tokenizer, where)
    chat = column == "messages"
    texts = _read_chats(values, tokenizer, where) if chat else _read_texts(values, where)
    check_characters(texts, column, where)
    return texts, prompt_tokens(tokenizer, texts, chat=chat)


def check_characters(texts: list[str], column: str, where: str) -> None:
    """JSON can write half of a surrogate pair, which no tokenizer takes."""
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{where}: row {row} has half of a surrogate pair ({text[error.start]!r}) in `{column}`, which is no "
                "character; correct the row"
            ) from None


def _read_texts(values: list[Any], where: str) -> list[str]:
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ConfigError(
                f"{where}: row {row} has {type(value).__name__} in `prompt`, not text; a chat belongs in `messages`"
            )
    return values


def _read_chats(values: list[Any], tokenizer: PreTrainedTokenizerBase, where: str) -> list[str]:
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{where} has `messages`, but the tokenizer of actor.model has no chat template; add chat_template.jinja "
            "to the model folder, or give the prompts as text in `prompt`"
        )
    return [_render(value, tokenizer, f"{where}: row {row}") for row, value in enumerate(values)]


def _render(messages: Any, tokenizer: PreTrainedTokenizerBase, where: str) -> str:
    try:
        plain = plain_messages(messages)
    except ValueError as error:
        raise ConfigError(f"{where} has {error}") from None
    if plain[-1]["role"] == "assistant":
        raise ConfigError(f"{where} ends with an assistant's message, so nothing is left to answer; cut it off")
    try:
        return chat_text(tokenizer, plain)
    except Exception as error:  # a template is a program: it raises what it likes
        raise ConfigError(f"{where} does not go through the tokenizer's chat template: {error}") from error


def _read_token_ids(
    values: list[Any], tokenizer: PreTrainedTokenizerBase, where: str
) -> tuple[list[str], list[list[int]]]:
    size = len(tokenizer)
    for row, ids in enumerate(values):
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            raise ConfigError(f"{where}: row {row} has no list of whole numbers in `prompt_token_ids`; correct the row")
        outside = [i for i in ids if not 0 <= i < size]
        if outside:
            raise ConfigError(
                f"{where}: row {row} has token id {outside[0]}, outside the tokenizer's {size} (0 to {size - 1}); "
                "tokenise with the actor's tokenizer"
            )
    return [tokenizer.decode(ids, skip_special_tokens=False) for ids in values], values
