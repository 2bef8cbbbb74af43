"""Every value of a data set is, for whoever scores, what it is in the file; what is wrong with a file is told."""

from __future__ import annotations

import datetime
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from orchestrator.config.data import DatasetConfig
from orchestrator.data import dataset_rows
from orchestrator.data.dataset_rows import check_source, load_rows
from orchestrator.data.row_files import BadRows, read_csv, read_json
from orchestrator.errors import ConfigError

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "a",
        "answer": "007",
        "n": 1,
        "day": "2020-01-01",
        "time": "2020-01-01T10:00:00Z",
        "big": 12345678901234567890,
        "mixed": "1",
        "kind": {"index": 1, "tests": {"a": 1}},
        "list": [1, "2", None, [3.0]],
        "maybe": None,
        "flag": True,
    },
    {
        "prompt": "b",
        "answer": "8",
        "n": 2.5,
        "day": "2021-02-03",
        "time": "10:00",
        "big": -(2**70),
        "mixed": 5,
        "kind": {"index": "two", "tests": [{"b": None}]},
        "list": {},
        "maybe": "",
        "flag": 1,
    },
    {"prompt": "c", "answer": "", "mixed": False, "extra": "only here"},
]
COLUMNS = {name: [row.get(name) for row in ROWS] for row in ROWS for name in row}


def same(found: Any, expected: Any) -> bool:
    """Equal and of the same types, all the way down: 1 is neither 1.0 nor True."""
    return repr(found) == repr(expected)


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def load(path: Path, **more: Any) -> dict[str, list[Any]]:
    return load_rows(DatasetConfig(path=str(path), **more), "prompts.train").columns


# JSON

FORMS: dict[str, Callable[[Path], Path]] = {}


def form(write: Callable[[Path], Path]) -> Callable[[Path], Path]:
    FORMS[write.__name__] = write
    return write


@form
def lines(folder: Path) -> Path:
    (folder / "rows.jsonl").write_text(jsonl(ROWS))
    return folder / "rows.jsonl"


@form
def windows_lines_with_a_mark(folder: Path) -> Path:
    (folder / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(ROWS).replace("\n", "\r\n\r\n").encode())
    return folder / "rows.jsonl"


@form
def a_list(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(ROWS, indent=1))
    return folder / "rows.json"


@form
def a_list_per_column(folder: Path) -> Path:
    (folder / "rows.json").write_text(json.dumps(COLUMNS, indent=1))
    return folder / "rows.json"


@form
def a_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    (folder / "data/train-1.jsonl").write_text(jsonl(ROWS[:1]))
    (folder / "data/train-2.jsonl").write_text(jsonl(ROWS[1:]))
    (folder / "data/test.jsonl").write_text(jsonl([{"prompt": "held out"}]))
    return folder / "data"


@form
def a_compressed_folder(folder: Path) -> Path:
    (folder / "data").mkdir()
    with gzip.open(folder / "data/train.jsonl.gz", "wt") as file:
        file.write(jsonl(ROWS))
    return folder / "data"


@pytest.mark.parametrize("name", FORMS)
def test_every_value_stays_what_it_is(name: str, tmp_path: Path) -> None:
    found = load(FORMS[name](tmp_path))
    assert list(found) == list(COLUMNS)
    assert [column for column in COLUMNS if not same(found[column], COLUMNS[column])] == []


@pytest.mark.parametrize("last", [5, None, 2.5, True, "x", {"a": 1}, ["x"], 2**64])
@pytest.mark.parametrize("first", ["1", "2020-01-01", 1, {"a": "x"}, [1]])
def test_a_late_row_of_another_type_changes_no_other(tmp_path: Path, first: Any, last: Any) -> None:
    """Also beyond what a reader looks at before it decides on a type."""
    values = [first] * 20_000 + [last]
    (tmp_path / "rows.jsonl").write_text(jsonl([{"prompt": "a", "x": value} for value in values]))
    found = load(tmp_path / "rows.jsonl")["x"]
    assert found == values and type(found[0]) is type(first) and type(found[-1]) is type(last)


def test_texts_may_hold_any_character(tmp_path: Path) -> None:
    text = "line\u2028separator \x85 and \u00e9"
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load(tmp_path / "rows.jsonl") == {"prompt": [text]}


def test_splits_are_those_of_datasets(tmp_path: Path) -> None:
    file, folder = lines(tmp_path), a_folder(tmp_path)
    assert load(file, split="train[:2]")["prompt"] == ["a", "b"]
    assert load(file, split="train[-1:]", limit=5)["prompt"] == ["c"]
    assert load(folder, split="test")["prompt"] == ["held out"]
    assert load(folder, split="test+train[:34%]")["prompt"] == ["held out", "a"]
    for path, split in ((file, "test"), (folder, "validation")):
        with pytest.raises(ConfigError, match=f"split {split}.*train"):
            load(path, split=split)


# Other formats


def test_parquet_keeps_its_own_types(tmp_path: Path) -> None:
    table = {
        "day": ["2020-01-01", None],
        "big": pyarrow.array([2**63 + 5, None], pyarrow.uint64()),
        "nested": [{"a": None, "b": [1, None]}, None],
        "date": [datetime.date(2020, 1, 1), None],
        "kind": pyarrow.array(["x", "y"]).dictionary_encode(),
    }
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
    expected = {name: values if isinstance(values, list) else values.to_pylist() for name, values in table.items()}
    assert same(load(tmp_path / "rows.parquet"), expected)
    (tmp_path / "data").mkdir()
    (tmp_path / "rows.parquet").rename(tmp_path / "data/train.parquet")
    assert same(load(tmp_path / "data"), expected)


@pytest.mark.parametrize("form", ["rows.parquet", "rows.jsonl", "saved", "data/train.parquet"])
def test_a_tool_call_has_no_arguments_of_other_calls(form: str, tmp_path: Path) -> None:
    """Arrow gives all calls of a column the same arguments, null where a call has none. A null in a JSON file, or in a
    list, is meant."""

    def asks(name: str, **arguments: Any) -> dict[str, Any]:
        calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
        return {"role": "assistant", "content": "", "tool_calls": calls}

    asked, facts = {"role": "user", "content": "?", "tool_calls": None}, {"answer": None, "other": "1"}
    meant = asks("list", of=["a", None], **({"limit": None} if form.endswith("jsonl") else {}))
    rows = [
        {"messages": [asked, asks("weather", city="A"), asks("now")], "facts": facts},
        {"messages": [asked, asks("add", a=2, b={"c": 3}), meant], "facts": facts},
    ]
    path = tmp_path / form
    if form.endswith("jsonl"):
        path.write_text("\n".join(map(json.dumps, rows)))
    elif form == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(path)
    else:
        path.parent.mkdir(exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(path)
    found = load(path.parent if form.startswith("data") else path)
    assert same(found, {name: [row[name] for row in rows] for name in rows[0]})


def test_a_directory_of_very_many_files_is_refused_before_they_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n')
    monkeypatch.setattr(dataset_rows, "MOST_FILES", 3)
    config = DatasetConfig(path=str(tmp_path))
    check_source(config, "prompts.train")
    for name in "bcd":
        (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"path={tmp_path} holds more than 3 files and folders.*; name the file, or"):
        check_source(config, "prompts.train")


def test_a_file_that_is_no_parquet_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the error there is no log of `datasets` with a traceback."""
    logged: list[logging.LogRecord] = []
    monkeypatch.setattr(logging.getLogger("datasets"), "handlers", [handler := logging.Handler()])
    monkeypatch.setattr(handler, "emit", logged.append)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and something else")
    with pytest.raises(ConfigError, match=r"rows\.parquet .split train. cannot be loaded: ArrowInvalid: Parquet magic"):
        load(tmp_path / "rows.parquet")
    assert logged == []


def test_a_saved_data_set_keeps_its_own_types(tmp_path: Path) -> None:
    values = {"day": ["2020-01-01", None], "n": [1, 2], "nested": [{"a": [None, "x"]}, None]}
    datasets.Dataset.from_dict(values).save_to_disk(str(tmp_path / "saved"))
    assert same(load(tmp_path / "saved"), values)


@pytest.mark.parametrize("folder", [False, True])
def test_csv_has_no_types_so_its_values_are_text(tmp_path: Path, folder: bool) -> None:
    path = tmp_path / ("data/train.csv" if folder else "rows.csv")
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        'prompt,answer,n,day,big,empty\n"a, ""b""\nc",007,1,2020-01-01,12345678901234567890,NA\n\nb,8,2.50,x,,\n'
    )
    assert load(path.parent if folder else path) == {
        "prompt": ['a, "b"\nc', "b"],
        "answer": ["007", "8"],
        "n": ["1", "2.50"],
        "day": ["2020-01-01", "x"],
        "big": ["12345678901234567890", ""],
        "empty": ["NA", ""],
    }


# What is wrong


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"prompt": "a"}\n{"prompt": \n', "line 2, column 12 is not JSON"),
        (
            b'{"prompt": "a"}\n\n{"prompt": "caf\xe9"}\n',
            "line 3 is not UTF-8 .byte 0xe9.; save it as .* -f LATIN1",
        ),
        ('{"prompt": "a"}'.encode("utf-16"), "it is UTF-16; save it as UTF-8, for example with: iconv -f UTF-16 -t"),
        ('{"prompt": "a"}'.encode("utf-16-le"), "it holds NUL characters, as UTF-16 does; .*iconv -f UTF-16LE"),
        (b'{"prompt": "a"}\n["b"]\n', "line 2 is a list, not an object"),
        (b'"a"\n', "the file is text, not rows"),
        (b'["a"]', "row 0 is text, not an object"),
        (b'[{"prompt": "a"}, null]', "row 1 is null"),
        (b'[{"prompt": "a"},\n {"prompt" "b"}]', "line 2, column 12 is not JSON"),
        (b'{\n"version": 1,\n"data": [{"prompt": "a"}]\n}', "one object without a list per column"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "line 1 holds lists or objects .* too deeply"),
        (b'{"prompt": "a"}\n{"n": ' + b"9" * 5000 + b"}", "line 2 cannot be read"),
    ],
)
def test_a_file_that_is_no_json_is_told_with_its_line(tmp_path: Path, data: bytes, said: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(data)
    with pytest.raises(BadRows, match=said):
        read_json(file)
    with pytest.raises(ConfigError, match=r"prompts\.train\.path=.*rows\.jsonl .split train. cannot be loaded: "):
        load(file)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"prompt,answer\na,b\nc\n", "line 3 has 1 values, but the first line names 2 columns .prompt, answer."),
        (b"prompt,prompt\na,b\n", "line 1 names a column twice"),
        (b'prompt\n"a"b\n', "line 2 is not CSV"),
        (b"prompt\ncaf\xe9\n", "line 2 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_csv_is_told_with_its_line(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "rows.csv").write_bytes(data)
    with pytest.raises(BadRows, match=said):
        read_csv(tmp_path / "rows.csv")


@pytest.mark.parametrize("text", ["", "\n\n", "[]", "prompt\n"])
def test_a_file_without_rows_is_empty(tmp_path: Path, text: str) -> None:
    file = tmp_path / ("rows.csv" if text.startswith("prompt") else "rows.json")
    file.write_text(text)
    with pytest.raises(ConfigError, match="is empty"):
        load(file)
