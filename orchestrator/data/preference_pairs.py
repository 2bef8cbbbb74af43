"""A data set of comparisons → Preferences. Rows of texts flow in, token ids flow out; a ConfigError names a bad row."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from orchestrator.config.data import DatasetConfig
from orchestrator.data.dataset_rows import load_rows
from orchestrator.data.prompt_columns import check_characters, read_prompts
from orchestrator.data.prompts import example_of
from orchestrator.data.row_files import Rows
from orchestrator.errors import ConfigError
from roles.batch import Preferences
from roles.packing import right_padded

KEY = "reward_training.pairs.dataset"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a data set."""

    preferences: Preferences
    example: str
    """For the user: the preferred response of the first row as it was given and as the model reads it."""

    @property
    def summary(self) -> str:
        """For the user: how many there are, and how long they are."""
        return self.preferences.summary


def read_pairs(dataset: DatasetConfig, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Rows with `prompt` or `messages`, `chosen` and `rejected` (texts), tokenised.

    Prompts are those of `roles.text.prompt_tokens`; every response ends with EOS, once.
    """
    rows, where = load_rows(dataset, KEY), f"{KEY}.path={dataset.path}"
    column = _prompt_column(rows, where)
    read = read_prompts(column, rows[column], tokenizer, where)
    answers = [_answers(rows, name, tokenizer, where) for name in ("chosen", "rejected")]
    sequences = list(
        chain.from_iterable(
            ([*prompt, *chosen], [*prompt, *rejected])
            for prompt, chosen, rejected in zip(read.token_ids, *answers, strict=True)
        )
    )
    token_ids, lengths = right_padded(sequences, tokenizer.pad_token_id)
    groups = torch.arange(len(sequences)) // 2
    preferences = Preferences(token_ids, lengths, groups, torch.tensor([1.0, 0.0]).repeat(len(rows)))
    given = {name: rows[name][0] for name in (column, "chosen")}
    return Pairs(preferences, example_of(KEY, 0, given, sequences[0], tokenizer, read.kind))


def _prompt_column(rows: Rows, where: str) -> Literal["prompt", "messages"]:
    names = rows.column_names
    lacking = [name for name in ("chosen", "rejected") if name not in names]
    if not {"prompt", "messages"} & set(names):
        lacking.append("prompt (or messages)")
    if lacking:
        raise ConfigError(f"{where} lacks {', '.join(lacking)}; it has {', '.join(names)}; rename them")
    return "messages" if "messages" in names else "prompt"


def _answers(rows: Rows, name: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[list[int]]:
    values, eos = rows[name], tokenizer.eos_token_id
    for row, value in enumerate(values):
        if not isinstance(value, str):
            raise ConfigError(
                f"{where}: row {row} has {type(value).__name__} in `{name}`, not text; write the response"
            )
    check_characters(values, name, where)
    found = tokenizer(values, add_special_tokens=False)["input_ids"]
    return [list(ids) if list(ids[-1:]) == [eos] else [*ids, eos] for ids in found]
