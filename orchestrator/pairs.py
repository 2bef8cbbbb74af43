"""A data set of comparisons → Preferences. Rows of texts flow in, token ids flow out; a ConfigError names a bad row.

Called by `orchestrator.checks`, at the door.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from orchestrator.config import DatasetConfig
from orchestrator.errors import ConfigError
from orchestrator.prompts import read_chats, read_texts
from orchestrator.sources import load_rows
from roles.batch import Preferences
from roles.packing import right_padded

KEY = "reward_training.pairs.dataset"


def read_pairs(dataset: DatasetConfig, tokenizer: PreTrainedTokenizerBase) -> Preferences:
    """Rows with `prompt` or `messages`, `chosen` and `rejected` (texts), tokenised; EOS ends every response."""
    rows, where = load_rows(dataset, KEY), f"{KEY}.path={dataset.path}"
    prompts = _prompts(rows, tokenizer, where)
    answers = [_answers(rows, name, tokenizer, where) for name in ("chosen", "rejected")]
    eos = tokenizer.eos_token_id
    sequences = list(
        chain.from_iterable(
            ([*prompt, *chosen, eos], [*prompt, *rejected, eos])
            for prompt, chosen, rejected in zip(prompts, *answers, strict=True)
        )
    )
    token_ids, lengths = right_padded(sequences, tokenizer.pad_token_id)
    groups = torch.arange(len(sequences)) // 2
    return Preferences(token_ids, lengths, groups, torch.tensor([1.0, 0.0]).repeat(len(prompts)))


def _prompts(rows: Dataset, tokenizer: PreTrainedTokenizerBase, where: str) -> list[list[int]]:
    names = rows.column_names
    lacking = [name for name in ("chosen", "rejected") if name not in names]
    if not {"prompt", "messages"} & set(names):
        lacking.append("prompt (or messages)")
    if lacking:
        raise ConfigError(f"{where} lacks {', '.join(lacking)}; it has {', '.join(names)}; rename them")
    column = "messages" if "messages" in names else "prompt"
    _, ids = (read_chats if column == "messages" else read_texts)(list(rows[column]), tokenizer, where)
    return ids


def _answers(rows: Dataset, name: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[list[int]]:
    values: list[Any] = list(rows[name])
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ConfigError(
                f"{where}: row {row} has {type(value).__name__} in `{name}`, not text; write the response"
            )
    ids: list[list[int]] = tokenizer(values, add_special_tokens=False)["input_ids"]
    return ids
