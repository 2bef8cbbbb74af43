"""Each format of rows → decoded tokens; what is trained on stands in brackets."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import datasets
import pytest
from tokenizers.processors import TemplateProcessing

from configs.tiny.inputs import tokenizer
from orchestrator.config.data import RecordsConfig
from orchestrator.data.records import Record, RecordKind
from orchestrator.data.samples import Samples, read_records, read_samples
from orchestrator.data.statistics import DataStatistics
from orchestrator.errors import ConfigError
from roles.text.sample_tokens import TokenSample

WORDS = tokenizer()
Rows = list[dict[str, Any]]
USER, BLUE, RED = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
SYSTEM = {"role": "system", "content": "s"}


def written(folder: Path, rows: Rows, name: str = "rows.jsonl") -> str:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def read(folder: Path, rows: Rows, kind: RecordKind = "preferences", words: Any = WORDS, **more: Any) -> Samples:
    return read_samples(RecordsConfig(path=written(folder, rows), **more), "data", kind, words)


def shown(sample: TokenSample, words: Any = WORDS) -> str:
    parts = groupby(zip(sample.token_ids, sample.trained, strict=True), key=lambda pair: pair[1])
    texts = [(trained, words.decode([token for token, _ in part])) for trained, part in parts]
    return "".join(f"[{text}]" if trained else text for trained, text in texts)


def texts(samples: Samples) -> list[list[str]]:
    return [[shown(sample) for sample in group] for group in samples.groups]


HH = "\n\nHuman: q\n\nAssistant:"
CHAT = "<bos><user>q<assistant>"
PAIR = [f"{CHAT}[a<eos>]", f"{CHAT}[b<eos>]"]

PREFERENCES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "texts": ({"prompt": "q", "chosen": " a", "rejected": " b"}, ["q[ a<eos>]", "q[ b<eos>]"]),
    "HH": ({"chosen": f"{HH} a", "rejected": f"{HH} b"}, [f"{HH}[ a<eos>]", f"{HH}[ b<eos>]"]),
    "HH, whose responses begin alike": (
        {"chosen": f"{HH} I do", "rejected": f"{HH} I am"},
        [f"{HH}[ I do<eos>]", f"{HH}[ I am<eos>]"],
    ),
    "HH with a prompt": (
        {"prompt": HH, "chosen": f"{HH} a", "rejected": f"{HH} b"},
        [f"{HH}[ a<eos>]", f"{HH}[ b<eos>]"],
    ),
    "a common beginning is cut at a word": (
        {"chosen": "it is blue", "rejected": "it is black"},
        ["it is[ blue<eos>]", "it is[ black<eos>]"],
    ),
    "chats": ({"prompt": [USER], "chosen": [BLUE], "rejected": [RED]}, PAIR),
    "chats without a prompt": ({"chosen": [USER, BLUE], "rejected": [USER, RED]}, PAIR),
    "whole chats with a chat as prompt": ({"prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, RED]}, PAIR),
    "whole chats with a text as prompt": ({"prompt": "q", "chosen": [USER, BLUE], "rejected": [USER, RED]}, PAIR),
    "a text and chats": ({"prompt": "q", "chosen": [BLUE], "rejected": [RED]}, PAIR),
    "a chat and texts": ({"messages": [USER], "chosen": "a", "rejected": "b"}, PAIR),
    "two turns": (
        {"chosen": [USER, BLUE, USER, BLUE], "rejected": [USER, BLUE, USER, RED]},
        [f"{CHAT}a<eos><user>q<assistant>[a<eos>]", f"{CHAT}a<eos><user>q<assistant>[b<eos>]"],
    ),
    "a list in order": ({"prompt": "q", "responses": [" a", " b", " c"]}, [f"q[ {x}<eos>]" for x in "abc"]),
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_of_every_form(name: str, tmp_path: Path) -> None:
    row, expected = PREFERENCES[name]
    assert texts(read(tmp_path, [row])) == [expected]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("pref_hh_text.jsonl", ["\n\nHuman: q\n\nAssistant:[ a<eos>]", "\n\nHuman: q\n\nAssistant:[ b<eos>]"]),
        ("pref_trl_conversational.jsonl", PAIR),
        ("pref_addeos_tok.jsonl", ["<bos>q[a<eos>]", "<bos>q[b<eos>]"]),
    ],
)
def test_what_tokenizers_add_stands_at_the_ends_alone(case: str, expected: list[str], tmp_path: Path) -> None:
    rows: dict[str, dict[str, Any]] = {
        "pref_hh_text.jsonl": {"chosen": f"{HH} a", "rejected": f"{HH} b"},
        "pref_trl_conversational.jsonl": {"chosen": [USER, BLUE], "rejected": [USER, RED]},
        "pref_addeos_tok.jsonl": {"prompt": "q", "chosen": "a", "rejected": "b"},
    }
    adding = tokenizer()
    special = [(token, adding.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    (group,) = read(tmp_path, [rows[case]], words=adding).groups
    assert [shown(sample, adding).removeprefix("<bos>") for sample in group] == [
        x.removeprefix("<bos>") for x in expected
    ]
    assert all(sample.token_ids.count(adding.eos_token_id) == 1 for sample in group)


def test_scores_and_ranks(tmp_path: Path) -> None:
    rows: Rows = [
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 3.5, 1]},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [2, 1]},
        {"prompt": "q", "responses": ["a", "b", "c"]},
    ]
    assert read(tmp_path, rows).values == [(1, 3.5, 1), (-2, -1), (-1, -2, -3)]


def test_labels(tmp_path: Path) -> None:
    rows: Rows = [{"prompt": "q", "completion": " a", "label": label} for label in (True, False, 1, 0, "true", "0")]
    samples = read(tmp_path, rows, "labels")
    assert texts(samples) == [["q[ a<eos>]"]] * 6
    assert samples.values == [(1.0,), (0.0,), (1.0,), (0.0,), (1.0,), (0.0,)]


DEMONSTRATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"prompt": "q", "completion": " a"}, "q[ a<eos>]"),
    "a text and a chat": ({"prompt": "q", "completion": [BLUE]}, f"{CHAT}[a<eos>]"),
    "chats": ({"prompt": [USER, BLUE, USER], "completion": [RED]}, f"{CHAT}a<eos><user>q<assistant>[b<eos>]"),
    "a conversation": ({"messages": [USER, BLUE, USER, RED]}, f"{CHAT}[a<eos>]<user>q<assistant>[b<eos>]"),
    "one that ends with the user": ({"messages": [USER, BLUE, USER]}, f"{CHAT}[a<eos>]"),
    "an instruction": ({"instruction": "q", "output": "a"}, f"{CHAT}[a<eos>]"),
    "an instruction with an input": (
        {"instruction": "q", "input": "i", "output": "a"},
        "<bos><user>q\n\ni<assistant>[a<eos>]",
    ),
    "plain text": ({"text": "qa"}, "[qa<eos>]"),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        f"{CHAT}[a<eos>]",
    ),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_demonstrations_of_every_form(name: str, tmp_path: Path) -> None:
    row, expected = DEMONSTRATIONS[name]
    assert texts(read(tmp_path, [row], "demonstrations")) == [[expected]]


@pytest.mark.parametrize("text", ["qa", "<bos>qa", "<bos>qa<eos>"])
def test_a_text_without_a_prompt_begins_once(text: str, tmp_path: Path) -> None:
    adding = tokenizer()
    special = [(token, adding.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    ((sample,),) = read(tmp_path, [{"text": text}], "demonstrations", adding).groups
    assert shown(sample, adding) == "<bos>[qa<eos>]"


def test_texts_as_chats_with_a_system_prompt(tmp_path: Path) -> None:
    rows: Rows = [
        {"prompt": "Name a colour.", "completion": "Blue."},
        {"prompt": "\n\nHuman: q\n\nAssistant: a\n\nHuman: q\n\nAssistant:", "completion": " b"},
        {"prompt": [SYSTEM, USER], "completion": [BLUE]},
    ]
    assert texts(read(tmp_path, rows, "demonstrations", chat=True)) == [
        ["<bos><user>Name a colour.<assistant>[Blue.<eos>]"],
        [f"{CHAT}a<eos><user>q<assistant>[b<eos>]"],
        ["<bos><assistant>s" + "<user>q<assistant>[a<eos>]"],  # the tiny template knows no system
    ]
    found = texts(read(tmp_path, [rows[0], rows[2]], "demonstrations", chat=True, system="be kind"))
    assert "be kind" in found[0][0] and "be kind" not in found[1][0]
    assert "be kind" in texts(read(tmp_path, [{"messages": [USER, BLUE]}], "demonstrations", system="be kind"))[0][0]
    with pytest.raises(ConfigError, match=r"row 0 has texts, .* set `chat: true`"):
        read(tmp_path, rows[:1], "demonstrations", system="be kind")


def test_prompts_without_responses_take_a_system_prompt(tmp_path: Path) -> None:
    rows: Rows = [{"prompt": [USER]}, {"prompt": [SYSTEM, USER]}]
    config = RecordsConfig(path=written(tmp_path, rows), system="be kind")
    found = read_records(config, DataStatistics("data"), "candidates", lambda record: None)
    kind = {"role": "system", "content": "be kind"}
    assert [record for record, _ in found] == [Record([kind, USER], ()), Record([SYSTEM, USER], ())]


BAD: list[tuple[RecordKind, dict[str, Any], str]] = [
    ("preferences", {"prompt": "q", "chosen": "", "rejected": "b"}, "nothing in a response"),
    ("preferences", {"prompt": "q", "chosen": "a", "rejected": [RED, {"role": "user"}]}, "message without role"),
    ("preferences", {"chosen": [BLUE], "rejected": [RED]}, "no prompt: `chosen` begins with an assistant's"),
    ("preferences", {"chosen": [SYSTEM, USER, BLUE], "rejected": [SYSTEM, BLUE]}, "no common beginning"),
    ("preferences", {"prompt": [USER, BLUE], "chosen": "a", "rejected": "b"}, "an assistant's message at the end"),
    ("preferences", {"prompt": "q", "responses": ["a"]}, "list in `responses`, not a list of two or more"),
    ("preferences", {"prompt": "q", "responses": ["a", "b"], "scores": [1]}, "no number for each of its 2 responses"),
    ("preferences", {"prompt": "q", "responses": ["a", "b"], "scores": [1, float("nan")]}, "no number for each"),
    ("labels", {"prompt": "q", "completion": "a", "label": 2}, "2 in `label`; write true or false"),
    ("labels", {"prompt": "q", "completion": "a", "label": None}, "None in `label`"),
    ("demonstrations", {"prompt": "q", "completion": " "}, "nothing in `completion`"),
    ("demonstrations", {"text": " "}, "nothing in `text`"),
    ("demonstrations", {"text": [USER]}, "a chat in `text`; put it into `messages`"),
    ("demonstrations", {"messages": [USER]}, "no message of the assistant"),
    ("demonstrations", {"messages": "text"}, "text in `messages`"),
    ("demonstrations", {"conversations": [{"from": "alien", "value": "q"}]}, "a turn from 'alien'"),
    ("demonstrations", {"conversations": [{"from": "human", "value": None}]}, "without role or content"),
    ("demonstrations", {"conversations": "q"}, "no list of turns"),
    ("demonstrations", {"instruction": [USER], "output": "a"}, "a chat in `instruction`"),
]


@pytest.mark.parametrize(("kind", "row", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_bad_row_is_named_with_its_line_or_counted(
    kind: RecordKind, row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    good = {
        "preferences": {"prompt": "q", "chosen": "a", "rejected": "b", "responses": ["a", "b"], "scores": [1, 2]},
        "labels": {"prompt": "q", "completion": "a", "label": True},
        "demonstrations": {
            "messages": [USER, BLUE],
            "prompt": "q",
            "completion": "a",
            "instruction": "q",
            "output": "a",
            "text": "q",
        },
    }[kind]
    sound = {name: good.get(name, [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]) for name in row}
    if isinstance(sound.get("chosen"), str) and isinstance(row.get("chosen"), list):
        sound |= {"chosen": [USER, BLUE], "rejected": [USER, RED]}
    with pytest.raises(ConfigError, match=rf"rows.jsonl, line 2: row 1 has .*{message}.*bad_rows=skip"):
        read(tmp_path, [sound, row], kind)
    samples = read(tmp_path, [sound, row, row], kind, bad_rows="skip")
    (left,) = samples.statistics.left_out.values()
    assert len(samples) == 1 and left.count == 2 and "line 2" in left.first


def test_what_says_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    rows: Rows = [
        {"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]},
        {"prompt": "q", "responses": ["a", "a"], "scores": [1, 2]},
        {"prompt": "q", "responses": ["a", "b"], "scores": [2, 2]},
    ]
    statistics = read(tmp_path, rows).statistics
    assert (statistics.rows, statistics.kept) == (3, 1)
    lines = "\n".join(statistics.lines())
    assert "data: 3 rows, 1 used, 2 left out" in lines
    assert "1 left out: the responses are the same (first: " in lines and "line 2: row 1)" in lines
    assert "1 left out: all responses are ranked alike" in lines
    with pytest.raises(ConfigError, match="data has no row to learn from"):
        read(tmp_path, rows[1:])


REPEATING: Rows = [{"prompt": f"{n}?", "chosen": f"{n}? a", "rejected": f"{n}? b"} for n in range(3)]
READ_ONCE = [[f"{n}?[ {x}<eos>]" for x in "ab"] for n in range(3)]


@pytest.mark.parametrize(
    ("row", "read_as"),
    [
        ({"prompt": "q", "chosen": "q a", "rejected": None}, None),
        ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, None),
        ({"prompt": "q ", "chosen": "q a", "rejected": "qb"}, None),
        ({"prompt": "q", "chosen": " a", "rejected": "q b"}, None),
        ({"prompt": "", "chosen": "q a", "rejected": "q b"}, ["[q a<eos>]", "[q b<eos>]"]),
        ({"prompt": None, "chosen": "q a", "rejected": "q b"}, None),
        ({"prompt": "q", "chosen": [BLUE], "rejected": [RED]}, PAIR),
        ({"prompt": "q", "messages": [USER], "chosen": "qa", "rejected": "qb"}, [f"{CHAT}[q{x}<eos>]" for x in "ab"]),
    ],
)
@pytest.mark.parametrize("kind", ["preferences", "candidates"])
def test_one_odd_row_does_not_have_the_others_read_their_prompt_twice(
    kind: RecordKind, row: dict[str, Any], read_as: list[str] | None, tmp_path: Path
) -> None:
    """Neither does it lose anything at its beginning."""
    samples = read(tmp_path, [*REPEATING, row], kind, bad_rows="skip")
    assert texts(samples) == [*READ_ONCE, *([] if read_as is None else [read_as])]
    assert "begin with their prompt; it is not read twice" in "\n".join(samples.statistics.lines())
    if read_as is None:
        with pytest.raises(ConfigError, match=r"line 4: row 3 has .*data\.bad_rows=skip"):
            read(tmp_path, [*REPEATING, row], kind)


def test_a_row_that_repeats_its_prompt_by_chance_keeps_it(tmp_path: Path) -> None:
    other = {"prompt": "q", "chosen": " a", "rejected": " b"}
    samples = read(tmp_path, [REPEATING[0], other])
    assert texts(samples) == [["0?[0? a<eos>]", "0?[0? b<eos>]"], ["q[ a<eos>]", "q[ b<eos>]"]]
    assert "begin with their prompt in 1 row, but not in 1; they are read" in "\n".join(samples.statistics.lines())
    assert texts(read(tmp_path, REPEATING)) == READ_ONCE


def test_texts_that_run_together_are_told(tmp_path: Path) -> None:
    row = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "I will not."}
    assert "joined without a space, as in ' colour.Blue.'" in "\n".join(read(tmp_path, [row]).statistics.lines())
    samples = read(tmp_path, [row], chat=True)
    assert texts(samples)[0][0] == "<bos><user>Name a colour.<assistant>[Blue.<eos>]"
    assert "joined" not in "\n".join(samples.statistics.lines())
    spaced = read(tmp_path, [{name: f" {text}" for name, text in row.items()}])
    assert texts(spaced)[0][0] == " Name a colour.[ Blue.<eos>]" and not spaced.statistics.joined


def test_lengths_are_counted(tmp_path: Path) -> None:
    statistics = read(tmp_path, [{"prompt": "qq", "completion": x} for x in ("a", "aaa")], "demonstrations").statistics
    assert (statistics.prompt_tokens, statistics.response_tokens) == ([2, 2], [2, 4])
    assert "  tokens of together: 4 to 6, mean 5.0, half up to 4, 95 % up to 6" in statistics.lines()


def test_columns_have_other_names(tmp_path: Path) -> None:
    rows: Rows = [{"question": "q", "good": " a", "bad": " b", "prompt": "another"}]
    names = {"prompt": "question", "chosen": "good", "rejected": "bad"}
    assert texts(read(tmp_path, rows, columns=names)) == [["q[ a<eos>]", "q[ b<eos>]"]]
    with pytest.raises(ConfigError, match=r"has no column better, which data\.columns names; it has question, good"):
        read(tmp_path, rows, columns={**names, "chosen": "better"})


def test_sources_are_mixed_by_weight_whatever_their_forms(tmp_path: Path) -> None:
    more = {
        "b": {"path": written(tmp_path, [{"messages": [USER, BLUE]}] * 6, "b.jsonl"), "weight": 1},
        "c": {"path": written(tmp_path, [{"instruction": "q", "output": "b"}] * 9, "c.jsonl"), "weight": 2},
    }
    rows: Rows = [{"prompt": "q", "completion": f" {n}"} for n in range(9)]
    samples = read(tmp_path, rows, "demonstrations", weight=1, mixed_with=more)
    found = [text for (text,) in texts(samples)]
    assert found[:4] == [f"q[ {n}<eos>]" for n in range(4)]
    assert [found.count(f"{CHAT}[{x}<eos>]") for x in "ab"] == [4, 9]
    assert "c.jsonl: 9 rows" in "\n".join(samples.statistics.lines())
    assert "b.jsonl: 4 of 6 rows" in "\n".join(samples.statistics.lines())
    every = {name: {"path": source["path"]} for name, source in more.items()}
    assert len(read(tmp_path, rows, "demonstrations", mixed_with=every)) == 24
    with pytest.raises(ConfigError, match=r"data\.mixed_with\.b\.weight is null"):
        read(tmp_path, rows, "demonstrations", weight=1, mixed_with={"b": every["b"]})
    with pytest.raises(ConfigError, match=r"data\.mixed_with\.d\.path=.*none\.jsonl does not exist"):
        read(tmp_path, rows, "demonstrations", mixed_with={"d": {"path": str(tmp_path / "none.jsonl")}})


def test_an_arrow_file(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{"prompt": "q", "completion": " a"}]).save_to_disk(str(tmp_path / "saved"))
    (file,) = (tmp_path / "saved").glob("*.arrow")
    samples = read_samples(RecordsConfig(path=str(file)), "data", "demonstrations", WORDS)
    assert texts(samples) == [["q[ a<eos>]"]]


def test_missing_columns_name_those_found_and_the_formats(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks conversations; it has x, y; .* have conversations; or instruction"):
        read(tmp_path, [{"x": 1, "y": 2}], "demonstrations")
