"""Data, templates and configurations that libraries refuse in words of their own: the value and the fix are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from orchestrator.checks.policy_training import prepare_sft
from orchestrator.config.loading import validate_root
from orchestrator.config.sft import SftRun
from orchestrator.errors import ConfigError
from tests.unit.orchestrator.checks.door import World, refused, say


def empty(folder: Path) -> None:
    folder.mkdir()


def rows(folder: Path) -> None:
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "a"}\n')


def saved(folder: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"prompt": ["a"]})}).save_to_disk(str(folder))


@pytest.mark.parametrize(
    ("name", "made", "split", "parts"),
    [
        ("data", empty, "train", ["doesn't contain any data files", "put files that end in .jsonl", "or name a file"]),
        ("data", rows, "test", ["it has the splits train; name one of them"]),
        ("data", saved, "test", ["it has the splits train; name one of them"]),
        ("a.jsonl", lambda file: file.write_text('{"prompt": "a"}'), "tset", ['"tset"', "set prompts.train.split to"]),
        ("a.jsonl", lambda file: file.write_text('{"prompt": "a"}'), "train[a:]", ["set prompts.train.split to"]),
        ("a.parquet", lambda file: file.write_bytes(b"PAR1 and no more"), "train", ["fetch the file or write it anew"]),
        ("a.arrow", lambda file: file.write_bytes(b"ARROW1"), "train", ["fetch the file or write it anew"]),
    ],
)
def test_data_that_cannot_be_loaded(
    world: World, name: str, made: Callable[[Path], object], split: str, parts: list[str]
) -> None:
    made(world.root / name)
    world.set("prompts.train", {"path": str(world.root / name), "split": split})
    refused(world, f"prompts.train.path={world.root / name} (split {split}) cannot be loaded: ", *parts)


BROKEN = "{% for m in messages %}\n{{ m.content | louder }}{% endfor %}"


def chats(world: World, template: str) -> None:
    (world.policy / "chat_template.jinja").write_text(template)
    world.prompts.write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    (world.root / "told.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    data = {"path": str(world.root / "told.jsonl"), "bad_rows": "skip"}
    world.set("sft", {"output": str(world.root / "o"), "model": {"path": str(world.policy)}, "data": data})
    world.set("sft.max_tokens", 16)


def test_a_broken_template_is_told_with_its_line_whatever_the_rows(world: World) -> None:
    chats(world, BROKEN)
    told = (
        "the tokenizer's chat template is broken in line 2: No filter named 'louder'; correct it (chat_template.jinja"
    )
    refused(world, told)
    with pytest.raises(ConfigError) as caught:
        prepare_sft(validate_root(SftRun, world.data), None)
    assert f"sft.data.path={world.root / 'told.jsonl'}: {told}" in str(caught.value)


def test_a_chat_that_a_template_refuses_is_told_with_both_fixes(world: World) -> None:
    chats(world, "{{ raise_exception('not so') }}")
    refused(world, "line 1: row 0 does not go through", "not so; correct the messages, or the template")


@pytest.mark.parametrize("said", [{"rope_type": "yarnn", "factor": 2.0}, {"type": "yarnn", "factor": 2.0}])
def test_an_unknown_scaling_of_positions_is_told_with_the_known_ones(world: World, said: dict[str, object]) -> None:
    say(world.policy, rope_scaling=said, rope_parameters=said)
    refused(world, f"actor.model.path={world.policy}", "rope_type='yarnn'", "none of default, linear, dynamic, yarn")
