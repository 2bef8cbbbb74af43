"""A data set of pairs → Preferences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from configs.tiny.inputs import tokenizer
from orchestrator.config.data import RecordsConfig
from orchestrator.data.preference_pairs import read_pairs
from orchestrator.errors import ConfigError
from roles.batch import Preferences

WORDS = tokenizer()


def dataset(tmp_path: Path, rows: list[dict[str, Any]]) -> RecordsConfig:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordsConfig(path=str(path))


def texts(preferences: Preferences) -> list[str]:
    rows = zip(preferences.token_ids.tolist(), preferences.lengths.tolist(), strict=True)
    return [WORDS.decode(ids[:length]) for ids, length in rows]


def test_pairs_of_texts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "what is", "chosen": " red", "rejected": " a 7"},
        {"prompt": "draw", "chosen": "x", "rejected": "y"},
    ]
    preferences = read_pairs(dataset(tmp_path, rows), WORDS).preferences
    assert texts(preferences) == ["what is red<eos>", "what is a 7<eos>", "drawx<eos>", "drawy<eos>"]
    assert preferences.groups.tolist() == [0, 0, 1, 1]
    assert preferences.comparisons().tolist() == [[0, 1], [2, 3]]
    padding = torch.arange(preferences.token_ids.shape[1]) >= preferences.lengths[:, None]
    assert set(preferences.token_ids[padding].tolist()) <= {WORDS.pad_token_id}


def test_a_soft_label_goes_with_its_pair(tmp_path: Path) -> None:
    """Below one half the other response is the better one; at one half nothing is known."""
    asked = {"prompt": "q", "chosen": " a", "rejected": " b"}
    rows = [{**asked, "chosen_probability": value} for value in (0.75, 0.25, 0.5, None, 1, "0.9")]
    pairs = read_pairs(dataset(tmp_path, [*rows, asked]), WORDS)
    better = pairs.preferences.comparisons()[:, 0]
    first = [texts(pairs.preferences)[row] for row in better]
    assert first == ["q a<eos>", "q b<eos>", "q a<eos>", "q a<eos>", "q a<eos>", "q a<eos>"]
    certainty = pairs.preferences.certainty[better]
    assert torch.equal(certainty, torch.tensor([0.75, 0.75, 1.0, 1.0, 0.9, 1.0]))
    assert "1 left out: each response is as likely to be the better one" in pairs.summary


@pytest.mark.parametrize("value", [-0.1, 1.5, "high", True, [0.5], 10**400])
def test_a_soft_label_that_is_no_probability_is_refused(tmp_path: Path, value: Any) -> None:
    rows = [{"prompt": "q", "chosen": " a", "rejected": " b", "chosen_probability": value}]
    with pytest.raises(ConfigError, match=r"row 0 has .* in `chosen_probability`; write a number from 0 to 1"):
        read_pairs(dataset(tmp_path, rows), WORDS)


def test_pairs_of_chats_get_the_template(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}], "chosen": "yes", "rejected": "no"}]
    pairs = read_pairs(dataset(tmp_path, rows), WORDS)
    assert texts(pairs.preferences)[0] == "<bos><user>hi<assistant>yes<eos>"
    assert "<bos><user>hi<assistant>yes<eos>" in pairs.example and '"chosen": "yes"' in pairs.example


def test_a_prompt_has_one_beginning_and_a_response_one_end(tmp_path: Path) -> None:
    """Whatever the tokenizer puts around a text, and whatever the texts hold already."""
    adding = tokenizer()
    special = [(token, adding.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    adding.backend_tokenizer.post_processor = TemplateProcessing(single="<bos> $A <eos>", special_tokens=special)
    rows = [
        {"prompt": "what is", "chosen": " red", "rejected": " a 7<eos>"},
        {"prompt": "<bos>draw", "chosen": "x", "rejected": "y<eos>"},
    ]
    pairs = read_pairs(dataset(tmp_path, rows), adding)
    assert texts(pairs.preferences) == [
        "<bos>what is red<eos>",
        "<bos>what is a 7<eos>",
        "<bos>drawx<eos>",
        "<bos>drawy<eos>",
    ]
    assert "<bos>what is red<eos>" in pairs.example and "<bos> begins a text, once" in pairs.example


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, r"lacks rejected; it has prompt, chosen; rename"),
        ({"chosen": "b", "rejected": "c"}, r"row 1 has no prompt, .* no common beginning"),
        ({"prompt": "a", "chosen": None, "rejected": "c"}, r"row 1 has null in `chosen`, not text"),
        ({"prompt": "a", "chosen": "b", "rejected": "\ud83d"}, r"row 1 has half of a surrogate pair .* in `rejected`"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, r"row 1 has null in `prompt`, not text"),
        (
            {"messages": [{"role": "user"}], "chosen": "b", "rejected": "c"},
            r"row 1 has a message without role or content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "b", "rejected": "c"},
            r"row 1 has a message .number 0. with a part of type image",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    sound = {key: [{"role": "user", "content": "x"}] if key == "messages" else f"x {key}" for key in row}
    with pytest.raises(ConfigError, match=message):
        read_pairs(dataset(tmp_path, [sound, row]), WORDS)
