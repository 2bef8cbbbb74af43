"""Data sets by name or path. A DatasetConfig flows in, rows flow out; or a ConfigError that names key, value and fix.

`orchestrator.data.row_files` reads JSON and CSV, since the readers of `datasets` give each column a type and cast its
values to it: "2020-01-01" becomes a date, 5 the text "5" beside other texts. Parquet and saved data sets have types of
their own, and `datasets` keeps them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from logging import CRITICAL
from pathlib import Path
from typing import Any

from orchestrator.config.data import DatasetConfig, SourceConfig
from orchestrator.data.row_files import BadRows, Row, Rows, Where, read_csv, read_json
from orchestrator.errors import ConfigError
from roles.redaction import without_credentials
from roles.text.messages import without_null_keys

LONGEST_NAME = 96
"""Characters of a name on the hub."""

MOST_FILES = 10_000
"""Files and folders in a directory of data; `datasets` looks at each of them several times."""

READ = (".jsonl", ".json", ".parquet", ".csv", ".arrow")
"""Extensions of files that can be read."""

CALLS = "tool_calls"
"""The key of a message's calls, each with the arguments of its tool."""


@dataclass(frozen=True, slots=True)
class SourceRows:
    """The rows of one source of a data set."""

    where: str
    """Key and value, for errors: `prompts.train.path=a.jsonl`."""
    rows: Rows
    """Those that are used; at least one."""
    available: int
    """Rows that the source has, up to its `limit`."""

    def place(self, row: int) -> str:
        """For errors: where a row stands; with the line of its file, where the file has lines."""
        return Where(self.where, self.rows.places).row(row)


def load_rows(config: DatasetConfig, key: str) -> Rows:
    """The rows of all sources, at least one. `key` is the section's key path, for errors."""
    return Rows.joined([source.rows for source in load_sources(config, key)])


def load_sources(config: DatasetConfig, key: str) -> list[SourceRows]:
    """The rows of each source, as many as `weight` says."""
    check_source(config, key)
    found = [_source(source, f"{key}{name}") for name, source in config.sources.items()]
    weights = [source.weight for source in config.sources.values()]
    if None in weights:
        return found
    most = min(len(source.rows) / weight for source, weight in zip(found, weights, strict=True) if weight)
    # A hair more, for a product such as 0.1 * 30 that should be whole.
    counts = [max(1, int(most * weight * (1 + 1e-9))) for weight in weights if weight]
    return [replace(one, rows=one.rows.first(count)) for one, count in zip(found, counts, strict=True)]


def _source(config: SourceConfig, key: str) -> SourceRows:
    rows, where = _load(config, key), _where(config, key)
    if config.limit is not None:
        rows = rows.first(config.limit)
    if not len(rows):
        raise ConfigError(f"{where} is empty; it needs at least one row")
    lacking = [name for name in config.columns.values() if name not in rows.column_names]
    if lacking:
        raise ConfigError(
            f"{where} has no column {' or '.join(lacking)}, which {key}.columns names; it has "
            f"{', '.join(rows.column_names)}"
        )
    return SourceRows(where, rows.renamed(config.columns) if config.columns else rows, len(rows))


def _where(config: SourceConfig, key: str) -> str:
    """Key and value as text for an error."""
    return f"{key}.path={without_credentials(config.path)}"


def is_hub_name(path: str) -> bool:
    """Whether `path` could be a hub's `owner/name`: nothing here has that name, and it is no mistyped file."""
    shaped = re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", path) is not None and len(path) <= LONGEST_NAME
    first = Path(path).parts[0] if shaped else ""
    mistyped = Path(path).suffix in {*READ, ".gguf", ".txt"} or ("/" in path and os.path.exists(first))
    return shaped and not mistyped and not os.path.exists(path)


def check_source(config: DatasetConfig, key: str) -> None:
    """Each file or directory must be there, and be of a kind that can be read; all sources have a weight, or none."""
    for name, source in config.sources.items():
        _check_path(source, f"{key}{name}")
    without = [f"{key}{name}" for name, source in config.sources.items() if source.weight is None]
    if 0 < len(without) < len(config.sources):
        raise ConfigError(f"{without[0]}.weight is null, but other sources of {key} have a weight; set all, or none")


def _check_path(config: SourceConfig, key: str) -> None:
    path, where = Path(config.path), _where(config, key)
    if path.is_file() and path.suffix not in READ:
        raise ConfigError(f"{where}: files end in {', '.join(READ)}; convert it, or name a directory")
    if path.is_dir() and len(list(islice(path.rglob("*"), MOST_FILES + 1))) > MOST_FILES:
        raise ConfigError(
            f"{where} holds more than {MOST_FILES} files and folders, too many to look for data in; name the "
            "file, or the folder that holds the data alone"
        )
    if path.is_file() and not path.stat().st_size:
        raise ConfigError(f"{where} is empty; it needs at least one row")
    if not path.exists() and not is_hub_name(config.path):
        raise ConfigError(f"{where} does not exist (relative paths start at the current directory, {Path.cwd()})")


def _load(config: SourceConfig, key: str) -> Rows:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(CRITICAL)  # what it logs of a file that it cannot read is in its exception
    path, where = Path(config.path), _where(config, key)
    try:
        if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            saved = datasets.load_from_disk(str(path))
            return _typed(_split_of(saved, config.split) if isinstance(saved, datasets.DatasetDict) else saved)
        if path.is_file():
            return _load_file(path, config.split)
        return _load_folder(config)
    except Exception as error:  # datasets raises whatever its readers raise
        raise ConfigError(f"{where} (split {config.split}) cannot be loaded: {_reason(error, key)}") from error


def _split_of(saved: Any, split: str) -> Any:
    if split not in saved:
        raise _no_such_split(saved)
    return saved[split]


def _no_such_split(splits: Iterable[str]) -> BadRows:
    return BadRows(f"it has the splits {', '.join(map(str, splits))}; name one of them (`split` beside path)")


def _load_file(path: Path, split: str) -> Rows:
    """The rows of a file, which is the split `train`."""
    import datasets

    if path.suffix in (".parquet", ".arrow"):
        return _typed(datasets.load_dataset(path.suffix[1:], data_files={"train": str(path)}, split=split))
    rows = read_csv(path) if path.suffix == ".csv" else read_json(path)
    return Rows.of(_pick({"train": rows}, split))


def _load_folder(config: SourceConfig) -> Rows:
    """The rows of a directory or of a data set of the hub: `datasets` finds the files of each split."""
    import datasets
    from datasets.packaged_modules.csv.csv import Csv
    from datasets.packaged_modules.json.json import Json

    builder = datasets.load_dataset_builder(config.path, config.name)
    if not isinstance(builder, Json | Csv):
        return _typed(datasets.load_dataset(config.path, config.name, split=config.split))
    said, manager = builder.config, datasets.DownloadManager()
    files = {str(name): paths for name, paths in said.data_files.items()}
    needed = [name for name in files if name in config.split]
    if not needed:
        raise _no_such_split(files)
    rows: dict[str, list[Row]] = {}
    for name in needed:
        here = [Path(file) for file in manager.iter_files(manager.download_and_extract(files[name]))]
        if isinstance(builder, Csv):
            rows[name] = [row for file in here for row in read_csv(file, said.encoding or "utf-8", said.sep)]
        else:
            rows[name] = [row for file in here for row in read_json(file, said.encoding, said.field)]
    return Rows.of(_pick(rows, config.split))


def _pick(rows: Mapping[str, Sequence[Row]], split: str) -> list[Row]:
    """The rows of a split as `datasets` writes it: `train`, `train[:100]`, `train[50%:]+test`."""
    import datasets

    parts = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(part) for name, part in rows.items()})
    return [row for part in parts for row in rows[part.splitname][part.from_ : part.to]]


def _typed(dataset: Any) -> Rows:
    """All columns of a `datasets.Dataset`, as Python values."""
    columns = {name: list(dataset[name]) for name in dataset.column_names}
    calling = [name for name, feature in dataset.features.items() if CALLS in str(feature)]
    return Rows({**columns, **{name: _with_own_arguments(columns[name]) for name in calling}})


def _with_own_arguments(value: Any) -> Any:
    """`value` where no tool call has an argument that only other calls of the table have: Arrow has it as null."""
    if isinstance(value, dict):
        return {
            key: without_null_keys(part) if key == CALLS else _with_own_arguments(part) for key, part in value.items()
        }
    return [_with_own_arguments(part) for part in value] if isinstance(value, list) else value


def _reason(error: BaseException, key: str) -> str:
    """The first line of the innermost exception, which `datasets` wraps, and what to do about it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    if isinstance(error, BadRows):
        return str(error)
    told = f"{type(error).__name__}: {lines[0]}".rstrip(".") if lines else type(error).__name__
    if "split" in told or "instruction format" in told:
        return f"{told}; set {key}.split to a split that is there, such as train or train[:1000]"
    if isinstance(error, FileNotFoundError):
        return f"{told}; put files that end in {', '.join(READ)} there, or name a file"
    if type(error).__module__.startswith("pyarrow"):
        return f"{told}; fetch the file or write it anew, or convert it to .jsonl"
    return f"{told}; correct it, or name other data with {key}.path"
