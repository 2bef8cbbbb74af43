"""Where prompts come from: the section `prompts`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from roles.config.section import PathText, Section


class SourceConfig(Section):
    """Rows from one place."""

    path: PathText
    """A hub name, a `.jsonl`, `.json`, `.csv`, `.parquet` or `.arrow` file, or a directory."""
    name: str | None = None
    """A hub data set's configuration."""
    split: str = "train"
    """As `datasets` writes it; `train[:1000]` works."""
    limit: int | None = Field(default=None, ge=1)
    """Number of rows to use, from the first on; null: all."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Names that are read here → names in the data, such as `{prompt: question, chosen: good, rejected: bad}`."""
    weight: float | None = Field(default=None, gt=0)
    """With `mixed_with`: the share of this source among the rows, in proportion to the weights of the others. As many
    rows are used as every source has for its share, from the first on. null at all sources: all rows."""


class DatasetConfig(SourceConfig):
    """Rows of a data set, or of several."""

    mixed_with: dict[str, SourceConfig] = Field(default_factory=dict)
    """More sources, each under a name of its own, such as `{harmless: {path: harmless.jsonl, weight: 0.5}}`."""

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """Key path behind that of this section → the source; the first has none."""
        return {"": self, **{f".mixed_with.{name}": source for name, source in self.mixed_with.items()}}


class RecordsConfig(DatasetConfig):
    """Rows to learn from: comparisons, labels or demonstrations."""

    chat: bool = False
    """Read prompts and responses that are texts as messages of a user and an assistant, which the chat template writes;
    dialogues in the format of Anthropic's HH data (`\\n\\nHuman:`, `\\n\\nAssistant:`) turn by turn."""
    system: str | None = None
    """A system prompt for chats without one; null: none is added."""
    bad_rows: Literal["error", "skip"] = "error"
    """A row that cannot be read ends the command, with file and line; or it is left out and counted."""


class PromptsConfig(Section):
    """The prompts of training and evaluation."""

    train: DatasetConfig
    """Prompts that are trained on."""
    heldout: DatasetConfig | None = None
    """Prompts that are never trained on, for `evaluation`."""
    heldout_fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the different prompts of `train` that is held out for `evaluation`, and never trained on; it is the same
    for every seed. Equal prompts stay together; of an environment's tasks every column counts, so tasks that differ in
    an id alone may be parted. null: none is; not beside `heldout`."""
    heldout_sets: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], DatasetConfig] = Field(default_factory=dict)
    """More held-out prompts, each set under a name of its own, such as `{math: {path: math.jsonl}}`: each is evaluated,
    and told under its name. `evaluation.decides` says which of all sets compares the steps of a run."""
    max_tokens: int = Field(ge=1)
    """Longest prompt, in tokens, after the chat template."""
    column: str | None = Field(default=None, min_length=1)
    """The column that holds the prompt: text, a chat or token ids; with dots a value inside a column, such as
    `extra_info.question`. null: the one of `prompt`, `messages` and `prompt_token_ids` that the rows have; without any,
    of `input`, `question`, `instruction` and `query`."""
    tools: str | None = Field(default=None, min_length=1)
    """The column that holds the tools of a chat, for the chat template: a list of JSON schemas, or such a list as JSON
    text. null: none."""
    too_long: Literal["error", "skip", "truncate"] = "error"
    """A longer prompt ends the run, is left out (counted), or loses its first tokens (counted)."""

    @property
    def heldout_names(self) -> tuple[str, ...]:
        """The names of all sets of held-out prompts; that of `heldout`, or of what is held out of `train`, is empty."""
        plain = self.heldout is not None or self.heldout_fraction is not None
        return (*([""] if plain else []), *self.heldout_sets)

    @property
    def evaluable(self) -> bool:
        """Whether there are held-out prompts."""
        return bool(self.heldout_names)

    def part(self, name: str) -> str:
        """The key of the set `name`, below `prompts`."""
        return f"heldout_sets.{name}" if name else "heldout"

    def dataset(self, part: str) -> DatasetConfig | None:
        """The data set of a key below `prompts`: `train`, `heldout` or that of a named set."""
        return {"train": self.train, "heldout": self.heldout, **self._named}[part]

    @property
    def _named(self) -> dict[str, DatasetConfig]:
        return {self.part(name): dataset for name, dataset in self.heldout_sets.items()}
