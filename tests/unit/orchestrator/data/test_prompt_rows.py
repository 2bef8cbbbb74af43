"""Rows of prompts: what they may look like, which tokens they become, and what bad data is told."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from orchestrator.config.data import DatasetConfig
from orchestrator.data.dataset_rows import is_hub_name, load_rows
from orchestrator.data.demonstrations import PtxData
from orchestrator.data.packed_demonstrations import packed
from orchestrator.data.ppo_data import PpoData
from orchestrator.data.prompts import PromptSource, read_questions
from orchestrator.errors import ConfigError
from tests.unit.orchestrator.data.prompt_files import LETTERS, TEMPLATE, Write, configuration, heldout, source_of

# Rows


def test_text_prompts_and_the_other_columns(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = heldout(configuration(write(LETTERS)), tokenizer)
    assert prompts.texts == list("abcdefg")
    assert prompts.token_ids == [[3], [4], [5], [6], [7], [8], [9]]
    assert prompts.columns == {"topic": list(range(7))}


def test_chats_go_through_the_template(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}, {"role": "user", "content": "c"}]
    prompts = heldout(configuration(write([{"messages": turns}]), prompts={"max_tokens": 20}), tokenizer)
    assert prompts.texts == ["user : a bot : b user : c bot :"]
    assert tokenizer.decode(prompts.token_ids[0]) == prompts.texts[0]


def test_token_ids_are_taken_as_they_are(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = heldout(configuration(write([{"prompt_token_ids": [3, 1, 5]}])), tokenizer)
    assert prompts.token_ids == [[3, 1, 5]]
    assert prompts.texts == ["a <eos> c"]


CHAT = [{"role": "user", "content": "a"}]
READ_CHAT = "user : a bot :"


@pytest.mark.parametrize(
    ("row", "column", "text"),
    [
        ({"prompt": CHAT, "reward_model": {"ground_truth": "4"}}, None, READ_CHAT),  # verl
        ({"prompt": "a b", "completion": "c"}, None, "a b"),  # TRL
        ({"prompt": CHAT, "completion": [{"role": "assistant", "content": "c"}]}, None, READ_CHAT),
        ({"instruction": "a b", "output": "c"}, "instruction", "a b"),
        ({"context_messages": CHAT, "messages": "something else"}, "context_messages", READ_CHAT),
        ({"input_ids": [3, 4]}, "input_ids", "a b"),
        ({"extra_info": {"question": {"text": "a b"}}, "prompt": CHAT}, "extra_info.question.text", "a b"),
        ({"a.b": "c", "a": {"b": "d"}}, "a.b", "c"),
    ],
)
def test_any_column_can_hold_prompts_of_any_kind(
    write: Write, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], column: str | None, text: str
) -> None:
    prompts = {"max_tokens": 20} | ({"column": column} if column else {})
    found = heldout(configuration(write([row]), prompts=prompts), tokenizer)
    assert found.texts == [text]
    others = {name: [value] for name, value in row.items() if name not in (column or "prompt", "messages")}
    assert found.columns == others | ({"messages": [CHAT]} if text == READ_CHAT else {})


@pytest.mark.parametrize("row", [{"extra_info": {"x": "a"}}, {"extra_info": "a"}])
def test_a_value_inside_a_column_must_be_there(
    write: Write, tokenizer: PreTrainedTokenizerFast, row: dict[str, Any]
) -> None:
    path = write([{"extra_info": {"question": "a"}}, row])
    with pytest.raises(ConfigError, match=r"row 1 has no `extra_info.question` \(prompts.column\); fill it"):
        source_of(configuration(path, prompts={"column": "extra_info.question"}), tokenizer)
    with pytest.raises(ConfigError, match=r"no column `extra.question` \(prompts.column\); it has extra_info"):
        source_of(configuration(path, prompts={"column": "extra.question"}), tokenizer)


def test_a_chat_template_must_end(
    write: Write, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roles.text.prompt_tokens.TEMPLATE_S", 0.1)
    endless = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>"
    )
    loop = "{% for i in range(99999) %}"
    endless.chat_template = f"{loop * 4}{'{% endfor %}' * 4}"
    with pytest.raises(ConfigError, match=r"row 0 does not go through.*chat template: it did not end within 0.1 s"):
        source_of(configuration(write([{"messages": CHAT}])), endless)


def test_a_named_column_wins_where_rows_have_two(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a", "prompt_token_ids": [4]}]
    with pytest.raises(ConfigError, match=r"prompt and prompt_token_ids.*prompts\.column"):
        heldout(configuration(write(rows)), tokenizer)
    prompts = heldout(configuration(write(rows), prompts={"column": "prompt_token_ids"}), tokenizer)
    assert prompts.token_ids == [[4]] and prompts.columns == {"prompt": ["a"]}


@pytest.mark.parametrize("form", ["json", "parquet", "folder", "saved", "splits"])
def test_every_form_that_datasets_loads(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, form: str) -> None:
    rows = datasets.Dataset.from_list(LETTERS)
    path = tmp_path / "data"
    if form == "json":
        path = tmp_path / "data.json"
        path.write_text(json.dumps(LETTERS))
    elif form == "parquet":
        path = tmp_path / "data.parquet"
        rows.to_parquet(str(path))
    elif form == "folder":
        path.mkdir()
        rows.to_json(str(path / "train.jsonl"))
    elif form == "saved":
        rows.save_to_disk(str(path))
    else:
        datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(str(path))
    assert heldout(configuration(path), tokenizer).texts == list("abcdefg")


def test_limit_and_split(write: Write) -> None:
    path = str(write(LETTERS))
    assert load_rows(DatasetConfig(path=path, limit=2), "prompts.train")["prompt"][:] == ["a", "b"]
    assert len(load_rows(DatasetConfig(path=path, split="train[:3]", limit=99), "prompts.train")) == 3


def test_a_changed_file_is_read_anew(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(heldout(configuration(write(LETTERS)), tokenizer)) == 7
    assert heldout(configuration(write([{"prompt": "x"}])), tokenizer).texts == ["x"]


# Long prompts

LONG = [{"prompt": "a b c d e f g h i j", "topic": 1}, {"prompt": "a b", "topic": 2}, {"prompt": "b " * 9, "topic": 3}]


def test_long_prompts_are_an_error(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError) as caught:
        source_of(configuration(write(LONG)), tokenizer)
    for part in ("row 0 has 10 tokens", "prompts.max_tokens=8", "2 of 3", "longest has 10", "skip or truncate"):
        assert part in str(caught.value)


def test_long_prompts_are_skipped_and_counted(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    config = configuration(write(LONG), prompts={"too_long": "skip"})
    questions = read_questions(config.prompts, "train", tokenizer)
    assert questions.summary == (
        "prompts.train: 1 prompt of 2 tokens; 2 longer than prompts.max_tokens=8 were left out"
    )
    assert PromptSource(questions, seed=0).next(2, 1).columns == {"topic": [2, 2]}


def test_skipping_all_prompts_is_an_error(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ConfigError, match=r"all 3 prompts are longer than prompts\.max_tokens=1"):
        source_of(configuration(write(LONG), prompts={"too_long": "skip", "max_tokens": 1}), tokenizer)


def test_long_prompts_lose_their_first_tokens_and_are_counted(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    config = configuration(write(LONG), prompts={"too_long": "truncate"})
    prompts = heldout(config, tokenizer)
    assert prompts.texts == ["c d e f g h i j", "a b", "b b b b b b b b"]
    assert [len(ids) for ids in prompts.token_ids] == [8, 2, 8]
    summary = read_questions(config.prompts, "heldout", tokenizer).summary
    assert summary == "prompts.heldout: 3 prompts of 2 to 8 tokens; 2 were longer and lost their first tokens"


def test_what_a_run_has_read_is_told_with_its_place(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    file = write(LONG[1:2])
    config = configuration(file)
    train, math = (replace(read_questions(config.prompts, "train", tokenizer), summary=name) for name in ("a", "b"))
    rows = PtxData(packed([[5, 2]], [[True, True]], 0), ("ptx: 3 rows",), "")
    place = f"prompts.train.path={file}"
    assert PpoData(train, {"math": math}).summary == f"a ({place})\nb ({place})"
    assert PpoData(train, {}, rows).summary == f"a ({place})\nptx: 3 rows"


# What stands at the edges (`tests/unit/roles/text/test_prompt_tokens.py` has the tokenizers)


@pytest.fixture
def adding(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Puts `a` before a text and `<eos>` after it."""
    words = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    special = [("a", words.token_to_id("a")), ("<eos>", words.token_to_id("<eos>"))]
    words.post_processor = processors.TemplateProcessing(single="a $A <eos>", special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", bos_token="a")


def test_a_prompt_begins_once_and_never_ends(write: Write, adding: PreTrainedTokenizerFast) -> None:
    prompts = heldout(configuration(write([{"prompt": "b"}, {"prompt": "a b"}])), adding)
    assert prompts.token_ids == [[3, 4], [3, 4]]
    assert prompts.texts == ["b", "a b"]
    given = heldout(configuration(write([{"prompt_token_ids": [4, 1]}])), adding)
    assert given.token_ids == [[4, 1]]


def test_a_shortened_prompt_keeps_its_beginning_token(write: Write, adding: PreTrainedTokenizerFast) -> None:
    config = configuration(write([{"prompt": "b c d e"}]), prompts={"too_long": "truncate", "max_tokens": 3})
    assert heldout(config, adding).texts == ["a d e"]
    assert 'read:  "a d e"' in read_questions(config.prompts, "heldout", adding).example, "what is read, not the row"
    config = configuration(write([{"prompt": "b c d e"}]), prompts={"too_long": "truncate", "max_tokens": 1})
    assert heldout(config, adding).texts == ["e"]


def test_one_row_is_shown(write: Write, adding: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "b " * 9}, {"prompt": "b \u202e"}]
    config = configuration(write(rows), prompts={"too_long": "skip"})
    lines = read_questions(config.prompts, "train", adding).example.splitlines()
    assert lines[0] == "prompts.train, row 1, as the model reads it:", "row 0 is left out"
    assert lines[1] == '  given: "b \ufffd"', "what could turn the terminal's lines is replaced"
    assert lines[2:4] == ['  read:  "a b <unk>"', "         3 tokens: 3 4 2"]
    assert lines[4] == "  rule:  a begins a text, once; <eos>, which the tokenizer puts after a text, is left out"


@pytest.mark.parametrize("name", ["input", "question", "instruction", "query"])
def test_prompts_stand_in_the_columns_of_other_systems_if_there_are_none_of_ours(
    write: Write, tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    assert source_of(configuration(write([{name: "a", "topic": 1}])), tokenizer).next(1, 1).texts == ["a"]
    both = configuration(write([{name: "a", "prompt": "b"}]))
    assert source_of(both, tokenizer).next(1, 1).texts == ["b"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("given", [[TOOL], json.dumps([TOOL])])
def test_tools_reach_the_chat_template(write: Write, tokenizer: PreTrainedTokenizerFast, given: Any) -> None:
    able = copy.deepcopy(tokenizer)
    able.chat_template = "{% for t in tools or [] %}{{ t['function']['name'] }} {% endfor %}" + TEMPLATE
    chat = [{"role": "user", "content": "a"}]
    config = configuration(
        write([{"messages": chat, "tools": given}, {"messages": chat, "tools": None}]), prompts={"tools": "tools"}
    )
    read = read_questions(config.prompts, "train", able)
    assert read.texts == ["f user : a bot :", "user : a bot :"] and "tools" not in read.summary
    unread = read_questions(config.prompts.model_copy(update={"tools": None}), "train", able)
    assert unread.texts[0] == "user : a bot :" and "`tools` is not read: " in unread.summary
    for rows, model, said in [
        ([{"messages": chat, "tools": [TOOL]}], tokenizer, "the chat template of actor.model has none"),
        ([{"prompt": "a", "tools": [TOOL]}], able, "the prompts in `prompt` are text"),
        ([{"messages": chat}], able, "has no column `tools`"),
        ([{"messages": chat, "tools": "{"}], able, "row 0 has in `tools` text that is no JSON"),
        ([{"messages": chat, "tools": [1]}], able, "row 0 has in `tools` a list, not a list of JSON schemas"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(said)):
            read_questions(configuration(write(rows), prompts={"tools": "tools"}).prompts, "train", model)


def test_a_tool_has_no_parameters_of_other_tools(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Arrow gives all schemas of a column the same keys, null where a tool has none. A null in a list is meant."""
    able = copy.deepcopy(tokenizer)
    able.chat_template = "{{ tools | tojson }}" + TEMPLATE
    tools: list[dict[str, Any]] = [
        {"name": name, "parameters": {"properties": {key: {"enum": ["a", None]}}}} for name, key in ("fx", "gy")
    ]
    chat = [{"role": "user", "content": "a"}]
    file = tmp_path / "prompts.parquet"
    datasets.Dataset.from_list([{"messages": chat, "tools": tools}]).to_parquet(file)
    config = configuration(file, prompts={"tools": "tools", "max_tokens": 99})
    (text,) = read_questions(config.prompts, "train", able).texts
    assert json.JSONDecoder().raw_decode(text)[0] == tools


# Bad data


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ([{"topic": "a"}], ["prompt, messages, prompt_token_ids", "it has topic", "rename"]),
        ([{"prompt": "a"}, {"prompt": None}], ["row 1 has null in `prompt`"]),
        ([{"prompt": "a"}, {"prompt": ""}], ["row 1 has an empty prompt"]),
        ([{"prompt": [{"role": "user", "content": "a"}]}, {"prompt": "a"}], ["row 1 has no list of messages"]),
        (
            [{"prompt": "a"}, {"prompt": [{"role": "user", "content": "a"}]}],
            ["row 1 has a list in `prompt`", "not text"],
        ),
        ([{"prompt": "a"}, {"prompt": 5}], ["row 1 has a number in `prompt`"]),
        ([{"prompt": [3]}, {"prompt": "a"}], ["row 1 has no list of whole numbers in `prompt`"]),
        ([{"prompt": {"text": "a"}}], ["row 0 has an object in `prompt`", "neither text, nor a chat, nor token ids"]),
        ([{"prompt": []}], ["row 0 has a list in `prompt`", "neither text, nor a chat, nor token ids"]),
        ([{"messages": [{"role": "usr", "content": "a"}]}], ["row 0", "'usr' of message 0", "did you mean `user`?"]),
        ([{"messages": [{"role": "zz", "content": "a"}]}], ["'zz' of message 0", "use system, developer, user"]),
        ([{"messages": [{"role": "user", "content": "\ud83d"}]}], ["row 0", "half of a surrogate pair"]),
        ([{"messages": []}], ["row 0 has no list of messages"]),
        ([{"messages": [{"role": "user"}]}], ["row 0", "without role or content"]),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], ["row 0 ends with an assistant's message"]),
        ([{"prompt_token_ids": [3, 99]}], ["row 0 has token id 99", "0 to 31"]),
        ([{"prompt_token_ids": [-1]}], ["row 0 has token id -1"]),
        ([{"prompt_token_ids": ["a"]}], ["row 0 has no list of whole numbers"]),
        ([{"prompt_token_ids": [True]}], ["row 0 has no list of whole numbers"]),
        ([{"prompt": "a"}, {"prompt": "b \ud83d"}], ["row 1 has half of a surrogate pair", "in `prompt`"]),
        ([{"messages": [{"role": "user", "content": [{"type": "image"}]}]}], ["row 0", "part of type image"]),
        ([{"messages": [{"role": "user", "content": {"a": 1}}]}], ["row 0", "content is an object"]),
        ([], ["is empty"]),
    ],
)
def test_bad_rows(
    write: Write, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], parts: list[str]
) -> None:
    path = write(rows)
    with pytest.raises(ConfigError) as caught:
        source_of(configuration(path), tokenizer)
    assert [p for p in [f"prompts.train.path={path}", *parts] if p not in str(caught.value)] == [], caught.value
    for row in re.findall(r": row (\d+)", str(caught.value)):
        assert f", line {int(row) + 1}: row {row}" in str(caught.value)


def test_messages_need_a_chat_template(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>")
    with pytest.raises(ConfigError, match="no chat template"):
        source_of(configuration(write([{"messages": [{"role": "user", "content": "a"}]}])), plain)


def test_a_failing_chat_template_names_the_row(write: Write, tokenizer: PreTrainedTokenizerFast) -> None:
    strict = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>")
    strict.chat_template = "{{ raise_exception('no system turn, please') }}"
    with pytest.raises(ConfigError, match=r"row 0 does not go through.*no system turn, please"):
        source_of(configuration(write([{"messages": [{"role": "user", "content": "a"}]}])), strict)


def test_files_that_are_no_data(tmp_path: Path) -> None:
    def message(path: Path | str, **more: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            load_rows(DatasetConfig(path=str(path), **more), "prompts.train")
        assert f"prompts.train.path={path}" in str(caught.value)
        return str(caught.value)

    broken, text, good = tmp_path / "broken.jsonl", tmp_path / "rows.txt", tmp_path / "good.jsonl"
    broken.write_text('{"prompt": "a"}\n{"prompt": \n')
    text.write_text("a")
    good.write_text('{"prompt": "a"}\n')
    (tmp_path / "nothing").mkdir()
    assert "does not exist" in message(tmp_path / "none.jsonl")
    assert "does not exist" in message("missing.jsonl")
    assert "cannot be loaded" in message(broken)
    assert ".jsonl, .json, .parquet" in message(text)
    assert "test" in message(good, split="test")
    assert "cannot be loaded" in message(tmp_path / "nothing")


def test_what_could_be_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub_name("owner/name") and is_hub_name("gpt2") and is_hub_name("Qwen/Qwen2.5-0.5B")
    for path in (
        "data",
        "data/prompts",
        "a/b/c",
        "./owner/name",
        "/abs/name",
        "rows.jsonl",
        "owner/rows.parquet",
        "../x",
    ):
        assert not is_hub_name(path), path
