"""Where prompts come from: the section `prompts`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roles.config.section import Section


class DatasetConfig(Section):
    """Rows that the `datasets` library can load."""

    path: str = Field(min_length=1)
    """A hub name, a `.jsonl`, `.json`, `.csv` or `.parquet` file, or a directory."""
    name: str | None = None
    """A hub data set's configuration."""
    split: str = "train"
    """As `datasets` writes it; `train[:1000]` works."""
    limit: int | None = Field(default=None, ge=1)
    """Number of rows to use, from the first on; null: all."""


class PromptsConfig(Section):
    """The prompts of training and evaluation."""

    train: DatasetConfig
    """Prompts that are trained on."""
    heldout: DatasetConfig | None = None
    """Prompts that are never trained on, for `evaluation`."""
    max_tokens: int = Field(ge=1)
    """Longest prompt, in tokens, after the chat template."""
    column: str | None = Field(default=None, min_length=1)
    """The column that holds the prompt: text, a chat or token ids; with dots a value inside a column, such as
    `extra_info.question`. null: the one of `prompt`, `messages` and `prompt_token_ids` that the rows have."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """A longer prompt ends the run, is left out (counted), or loses its first tokens (counted)."""
