"""Files of prompts and comparisons: read, or refused with the file and the row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from orchestrator.config.data import PromptsConfig, RecordsConfig
from orchestrator.data.prompts import read_questions, read_tasks
from orchestrator.data.records import FORMATS
from orchestrator.data.samples import read_samples
from orchestrator.errors import ConfigError
from roles.text.tokenizer import load_tokenizer
from tests.unit.fuzz.commands import examples
from tests.unit.fuzz.damage import damaged
from tests.unit.fuzz.odd import json_values
from tests.unit.fuzz.world import World

TEXTS = ["a b", "", "\n\nHuman: a\n\nAssistant: b", "a b c"]
CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SOUND: dict[str, Any] = {
    **{
        "prompt": "a b",
        "messages": CHAT,
        "prompt_token_ids": [5, 6],
        "chosen": "a b c",
        "rejected": "a b d",
        "responses": ["a", "b"],
    },
    **{
        "scores": [1, 2],
        "ranks": [1, 2],
        "completion": "a",
        "label": True,
        "instruction": "a",
        "input": "b",
        "output": "c",
    },
    "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
}
"""Column → a value that some format takes."""
values = st.sampled_from([*SOUND.values(), *TEXTS]) | json_values
COLUMNS = [["prompt"], ["messages"], ["prompt_token_ids"], ["prompt", "answer"]] + [
    [*(["prompt"] if form.prompt else []), *form.needs] for form in FORMATS
]


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Sound rows of a format with up to two odd values among them."""
    names = draw(st.sampled_from(COLUMNS))
    found = [{name: SOUND.get(name, "x") for name in names} for _ in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(0, 2))):
        row = draw(st.sampled_from(found))
        row[draw(st.sampled_from([*names, *SOUND]))] = draw(values)
    return found


def as_lines(found: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in found).encode()


def as_csv(found: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in found for name in row)), restval="")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue().encode("utf-8", "surrogatepass")


def as_parquet(found: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(found), file)
    except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError, ValueError, RecursionError):
        pyarrow.parquet.write_table(pyarrow.table({"prompt": [1.5, None]}), file)
    return file.getvalue()


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "jsonl": as_lines,
    "json": lambda found: json.dumps(found).encode(),
    "csv": as_csv,
    "parquet": as_parquet,
}


@pytest.fixture(scope="module")
def tokenizer(world: World) -> PreTrainedTokenizerBase:
    return load_tokenizer(world.inputs / "policy")


def check_file(
    world: World, tokenizer: PreTrainedTokenizerBase, data: bytes, ending: str, settings: dict[str, Any]
) -> None:
    """Each reader reads it, or names it."""
    file = world.write_bytes(data, f"rows.{ending}")
    prompts = PromptsConfig.model_validate({"train": {"path": str(file)}, "max_tokens": 8, "too_long": "truncate"})
    records = RecordsConfig.model_validate({"path": str(file), **settings})
    readers: list[Callable[[], Any]] = [
        lambda: read_questions(prompts, "train", tokenizer).fingerprint(),
        lambda: read_tasks(prompts, "train").fingerprint(),
        *(
            lambda kind=kind: read_samples(records, "data", kind, tokenizer)
            for kind in ("preferences", "labels", "demonstrations")
        ),
    ]
    for read in readers:
        try:
            read()
        except ConfigError as error:
            assert str(file) in str(error) or "data has no row" in str(error)
            str(error).encode()


@examples(40)
@given(
    rows(), st.sampled_from(sorted(FORMS)), st.sampled_from([{}, {"chat": True}, {"system": "s"}, {"bad_rows": "skip"}])
)
def test_odd_rows(
    world: World, tokenizer: Any, found: list[dict[str, Any]], ending: str, settings: dict[str, Any]
) -> None:
    check_file(world, tokenizer, FORMS[ending](found), ending, settings)


@examples(30)
@given(st.data(), rows(), st.sampled_from(sorted(FORMS)))
def test_damaged_files(
    world: World, tokenizer: Any, data: st.DataObject, found: list[dict[str, Any]], ending: str
) -> None:
    check_file(world, tokenizer, data.draw(damaged(FORMS[ending](found))), ending, {})


@examples(10)
@given(
    st.data(),
    rows(),
    st.sampled_from(sorted(FORMS)),
    st.sampled_from(["prompts.train", "prompts.heldout", "sft.data", "reward_training.pairs.dataset"]),
)
def test_rows_are_shown(world: World, data: st.DataObject, found: list[dict[str, Any]], ending: str, key: str) -> None:
    content = FORMS[ending](found)
    file = world.write_bytes(data.draw(st.just(content) | damaged(content)), f"rows.{ending}")
    refused = world.refusal("data", world.file, f"{key}={{path: {file}}}")
    assert refused is None or str(file) in refused or f"{key} has no row" in refused, refused
