"""The responses of another run, which a judge compares with the policy's: a file flows in, a response to each prompt
flows out.

    {"prompt": "draw the old letter", "completion": "a b"}     {identity("draw the old letter"): "a b"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.config.data import DatasetConfig
from orchestrator.config.evaluation import WinRate
from orchestrator.data.dataset_rows import load_rows
from orchestrator.data.judge_prompts import transcript
from orchestrator.data.row_files import Where
from orchestrator.errors import ConfigError
from roles.text.messages import plain_messages
from roles.text.sample_tokens import Text

AGAINST = "evaluation.judge.against"


def given_prompts(texts: Sequence[str], columns: Mapping[str, Sequence[Any]]) -> list[Text]:
    """The prompts as they were given: chats where the column `messages` has them, texts otherwise."""
    chats = columns.get("messages") or [None] * len(texts)
    return [text if chat is None else plain_messages(chat) for text, chat in zip(texts, chats, strict=True)]


def identity(prompt: Text) -> str:
    """The same for equal prompts."""
    return json.dumps(prompt, sort_keys=True)


def read_opponent(config: WinRate) -> dict[str, str]:
    """Identity of a prompt → the other run's response. ConfigError for rows that are none."""
    where = f"{AGAINST}={config.against}"
    try:
        rows = load_rows(DatasetConfig(path=config.against), AGAINST)
    except ConfigError as error:
        raise ConfigError(str(error).replace(f"{AGAINST}.path=", f"{AGAINST}=")) from None
    lacking = [name for name in ("prompt", "completion") if name not in rows.columns]
    if lacking:
        raise ConfigError(f"{where} lacks {', '.join(lacking)}; it has {', '.join(rows.columns)}; name another file")
    found: dict[str, str] = {}
    for number, pair in enumerate(zip(rows.columns["prompt"], rows.columns["completion"], strict=True)):
        try:
            prompt, completion = (text if isinstance(text, str) else plain_messages(text) for text in pair)
        except ValueError as error:
            raise ConfigError(f"{Where(where, rows.places).row(number)} has {error}") from None
        found.setdefault(identity(prompt), completion if isinstance(completion, str) else transcript(completion))
    return found
