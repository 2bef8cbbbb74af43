"""The tools of chats, from the rows of a data set to what a model learns, is asked and is judged by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from configs.tiny.inputs import tokenizer
from orchestrator.config.data import RecordsConfig
from orchestrator.config.labelling import SampledCandidates
from orchestrator.data.candidates import candidate_questions, candidates_of
from orchestrator.data.judge_prompts import JudgeAnswer, comparison, question_tokens
from orchestrator.data.records import RecordKind
from orchestrator.data.samples import Samples, read_records, read_samples
from orchestrator.data.statistics import DataStatistics
from orchestrator.errors import ConfigError
from orchestrator.stages.best_of_n import picked_rows
from tests.unit.orchestrator.data.test_samples import BLUE, RED, USER, Rows, shown, written
from tests.unit.orchestrator.fakes import prompts_of, rollouts_of

TOOLS = [{"type": "function", "function": {"name": "draw"}}]
WORDS = tokenizer()
TEMPLATE = str(WORDS.chat_template)
NAMES = "{% for tool in tools or [] %}({{ tool.function.name }}){% endfor %}"
WORDS.chat_template = NAMES + TEMPLATE
CHAT = "<bos><user>q<assistant>"


def read(folder: Path, rows: Rows, kind: RecordKind = "demonstrations", words: Any = WORDS, **more: Any) -> Samples:
    return read_samples(RecordsConfig(path=written(folder, rows), **more), "data", kind, words)


def texts(samples: Samples) -> list[list[str]]:
    return [[shown(sample, WORDS) for sample in group] for group in samples.groups]


@pytest.mark.parametrize("given", [TOOLS, json.dumps(TOOLS)])
@pytest.mark.parametrize(
    ("kind", "row", "spoken"),
    [
        ("demonstrations", {"messages": [USER, BLUE, USER, RED]}, ["[a<eos>]<user>q<assistant>[b<eos>]"]),
        ("demonstrations", {"prompt": [USER], "completion": [BLUE]}, ["[a<eos>]"]),
        ("labels", {"prompt": [USER], "completion": "a", "label": True}, ["[a<eos>]"]),
        ("preferences", {"prompt": [USER], "chosen": [BLUE], "rejected": [RED]}, ["[a<eos>]", "[b<eos>]"]),
        ("preferences", {"messages": [USER], "responses": ["b", "a"], "scores": [1, 2]}, ["[b<eos>]", "[a<eos>]"]),
    ],
)
def test_the_tools_of_a_row_are_written_before_what_is_learned(
    tmp_path: Path, kind: RecordKind, row: dict[str, Any], spoken: list[str], given: Any
) -> None:
    rows = [{**row, "tools": given}, {**row, "tools": None}, {**row, "tools": []}]
    samples = read(tmp_path, rows, kind)
    with_tools, *without = texts(samples)
    assert with_tools == [f"(draw){CHAT}{said}" for said in spoken]
    assert without == [[f"{CHAT}{said}" for said in spoken]] * 2
    assert "tools" not in "\n".join(samples.statistics.lines())


def test_the_marks_of_a_template_and_a_template_for_tools_alone(tmp_path: Path) -> None:
    marked = NAMES + (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<eos>"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    rows: Rows = [{"messages": [USER, BLUE], "tools": TOOLS}, {"messages": [USER, BLUE]}]
    words = tokenizer()
    words.chat_template = marked
    own = [[shown(sample, words) for (sample,) in read(tmp_path, rows, words=words).groups]]
    words.chat_template = {"default": TEMPLATE, "tool_use": marked}  # type: ignore[assignment]
    own.append([shown(sample, words) for (sample,) in read(tmp_path, rows, words=words).groups])
    assert own[0] == ["(draw)<user>q<assistant>[a<eos>]", "<user>q<assistant>[a<eos>]"]
    assert own[1] == [own[0][0], f"{CHAT}[a<eos>]"]


def test_a_tool_has_no_keys_of_other_tools(tmp_path: Path) -> None:
    words = tokenizer()
    words.chat_template = "{{ tools | tojson }}" + TEMPLATE
    tools = [{"name": name, "parameters": {"properties": {key: {"type": "n"}}}} for name, key in ("fx", "gy")]
    file = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([{"messages": [USER, BLUE], "tools": tools}]).to_parquet(file)
    ((sample,),) = read_samples(RecordsConfig(path=str(file)), "data", "demonstrations", words).groups
    assert json.JSONDecoder().raw_decode(words.decode(sample.token_ids))[0] == tools


def test_tools_that_nothing_writes_are_told(tmp_path: Path) -> None:
    chat, text = {"messages": [USER, BLUE], "tools": TOOLS}, {"prompt": "q", "completion": " a", "tools": TOOLS}
    lines = read(tmp_path, [chat, chat], words=tokenizer()).statistics.lines()
    assert "  2 rows have tools, which the chat template does not write" in lines
    lines = read(tmp_path, [text]).statistics.lines()
    assert "  1 row has tools, for which texts have no place; set data.chat=true" in lines
    assert texts(read(tmp_path, [{**text, "completion": "a"}], chat=True)) == [[f"(draw){CHAT}[a<eos>]"]]


@pytest.mark.parametrize(
    ("given", "said"), [("{", "text that is no JSON"), ([1], "a list, not a list of JSON schemas"), (5, "a number")]
)
def test_tools_that_are_none_are_a_bad_row(tmp_path: Path, given: Any, said: str) -> None:
    rows: Rows = [{"messages": [USER, BLUE]}, {"messages": [USER, BLUE], "tools": given}]
    with pytest.raises(ConfigError, match=rf"line 2: row 1 has in `tools` {said}.*bad_rows=skip"):
        read(tmp_path, rows)
    assert len(read(tmp_path, rows, bad_rows="skip")) == 1


@pytest.mark.parametrize("empty", [{}, {"content": None}, {"content": ""}])
def test_a_message_that_calls_tools_needs_no_content(tmp_path: Path, empty: dict[str, Any]) -> None:
    """As TRL and OpenAI write it."""
    words = tokenizer()
    said = "{{ m.content }}{% for c in m.tool_calls or [] %}[{{ c.function.name }}]{% endfor %}"
    turn = f"{{% if m.role == 'assistant' %}}{{{{ '<assistant>' }}}}{said}{{{{ '<eos>' }}}}{{% else %}}<user>{said}"
    words.chat_template = (
        f"{{% for m in messages %}}{turn}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )
    call = {"role": "assistant", **empty, "tool_calls": [{"type": "function", "function": {"name": "draw"}}]}
    rows: list[tuple[RecordKind, dict[str, Any], list[str]]] = [
        ("demonstrations", {"messages": [USER, call, USER, BLUE]}, ["<user>q<assistant>[[draw]<eos>]"]),
        ("demonstrations", {"prompt": [USER], "completion": [call]}, ["<user>q<assistant>[[draw]<eos>]"]),
        (
            "preferences",
            {"prompt": [USER], "chosen": [call], "rejected": [BLUE]},
            ["<user>q<assistant>[[draw]<eos>]", "<user>q<assistant>[a<eos>]"],
        ),
    ]
    for kind, row, expected in rows:
        (group,) = read(tmp_path, [{**row, "tools": TOOLS}], kind, words).groups
        assert all(shown(sample, words).startswith(text) for sample, text in zip(group, expected, strict=True))
    assert comparison("Which?", "q", ([call_of(tmp_path, call)], "b"), 1).messages[0]["content"].count('"draw"') == 1
    with pytest.raises(ConfigError, match="a message without role or content"):
        read(tmp_path, [{"messages": [USER, {"role": "assistant", "tool_calls": []}]}])


def call_of(folder: Path, call: dict[str, Any]) -> dict[str, Any]:
    config = RecordsConfig(path=written(folder, [{"prompt": [USER], "completion": [call]}]))
    ((record, _),) = read_records(config, DataStatistics("data"), "demonstrations", lambda _: None)
    (said,) = record.responses[0]
    assert isinstance(said, dict)
    return said


def test_a_policy_is_asked_for_candidates_with_the_tools(tmp_path: Path) -> None:
    config = RecordsConfig(path=written(tmp_path, [{"prompt": [USER], "tools": TOOLS}, {"prompt": [USER]}]))
    records = [record for record, _ in read_records(config, DataStatistics("data"), "candidates", lambda _: None)]
    sampling = SampledCandidates.model_validate({"model": {"path": "m"}, "responses": 2})
    questions = candidate_questions(records, sampling, 1)
    assert [WORDS.decode(question_tokens(WORDS, question)) for question in questions] == [f"(draw){CHAT}"] * 2 + [
        CHAT
    ] * 2
    found = candidates_of(records, [JudgeAnswer(text) for text in "abab"], fewest=2).records
    assert [list(record.tools) for record in found] == [TOOLS, []]


@pytest.mark.parametrize("column", ["functions", "tools"])
@pytest.mark.parametrize("given", [TOOLS, json.dumps(TOOLS)])
def test_the_rows_of_best_of_n_are_learned_as_they_were_asked(tmp_path: Path, column: str, given: Any) -> None:
    rollouts = rollouts_of(prompts_of(4), 0)
    rollouts.responses[:] = ["a", "b", "c", "d"]
    rollouts.columns.update({"messages": [[USER]] * 4, column: [given, given, None, None]})
    rows = picked_rows(rollouts, torch.tensor([1.0, 2.0, 4.0, 3.0]), 2, tools=column)
    assert texts(read(tmp_path, rows)) == [[f"(draw){CHAT}[b<eos>]"], [f"{CHAT}[c<eos>]"]]
    assert texts(read(tmp_path, rows, "preferences"))[0] == [f"(draw){CHAT}[a<eos>]", f"(draw){CHAT}[b<eos>]"]
    unasked = picked_rows(rollouts, torch.tensor([1.0, 2.0, 4.0, 3.0]), 2)
    assert texts(read(tmp_path, unasked)) == [[f"{CHAT}[b<eos>]"], [f"{CHAT}[c<eos>]"]], "the policy had none"
