"""Demonstrations: what is too long, what is held out, which tokens are trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.tiny.inputs import tokenizer
from orchestrator.config.ptx import PtxConfig
from orchestrator.config.sft import SftConfig
from orchestrator.data.demonstrations import (
    PtxData,
    PtxSource,
    SftData,
    digest_of,
    read_demonstrations,
    read_ptx,
)
from orchestrator.data.training_parts import with_template
from orchestrator.errors import CheckpointError, ConfigError
from roles.shares import Demonstrations

WORDS = tokenizer()
ROWS = [{"prompt": "q", "completion": "x" * (1 + n)} for n in range(8)]
"""Of 3 to 10 tokens: the prompt, the letters, EOS."""


def read(folder: Path, rows: list[dict[str, Any]] = ROWS, words: Any = WORDS, **changes: Any) -> SftData:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {"output": "o", "model": {"path": "m"}, "data": {"path": str(file)}, "heldout_fraction": 0, **changes}
    return read_demonstrations(SftConfig.model_validate(config), words, seed=1)


def test_responses_are_trained_on_or_all_that_something_comes_before(tmp_path: Path) -> None:
    responses, everything = (read(tmp_path, train_on_prompt=said).training for said in (False, True))
    assert responses.lengths.tolist() == list(range(3, 11))
    assert responses.response_mask.sum(1).tolist() == list(range(2, 10))
    rows: list[dict[str, Any]] = [{"prompt": "two words", "completion": " and more"}]
    mask = read(tmp_path, rows, train_on_prompt=True).training.response_mask[0].tolist()
    assert mask == [False] + [True] * (len(mask) - 1)
    assert everything.response_mask.sum(1).tolist() == list(range(2, 10))


def test_a_longer_sample_is_an_error_or_left_out_or_cut(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"5 of 8 samples are longer than sft\.max_tokens=5 .* longest has 10 tokens"):
        read(tmp_path, max_tokens=5)
    skipped = read(tmp_path, max_tokens=5, too_long="skip")
    assert skipped.training.lengths.tolist() == [3, 4, 5]
    assert "5 left out: longer than sft.max_tokens=5" in skipped.summary
    cut = read(tmp_path, max_tokens=5, too_long="truncate")
    assert cut.training.lengths.tolist() == [3, 4, 5, 5, 5, 5, 5, 5]
    assert WORDS.eos_token_id not in cut.training.token_ids[-1]
    assert "5 samples lost their last tokens" in cut.summary
    rows: list[dict[str, Any]] = [*ROWS, {"prompt": "a long question", "completion": "x"}]
    assert "1 left out: no response within 3 tokens" in read(tmp_path, rows, max_tokens=3, too_long="truncate").summary
    with pytest.raises(ConfigError, match="no row to learn from"):
        read(tmp_path, max_tokens=2, too_long="skip")


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    data = read(tmp_path, heldout_fraction=0.25)
    assert data.heldout is not None
    lengths = [data.training.lengths.tolist(), data.heldout.lengths.tolist()]
    assert [len(part) for part in lengths] == [6, 2] and sorted(lengths[0] + lengths[1]) == list(range(3, 11))
    assert "6 demonstrations to train on, 2 held out" in data.summary
    assert read(tmp_path).heldout is None
    with pytest.raises(ConfigError, match=r"too few samples \(1\) to hold .* sft\.heldout_fraction=0"):
        read(tmp_path, ROWS[:1], heldout_fraction=0.5)
    (tmp_path / "aside.jsonl").write_text(json.dumps(ROWS[2]) + "\n")
    other = read(tmp_path, heldout_fraction=0.5, heldout={"path": str(tmp_path / "aside.jsonl")})
    assert other.heldout is not None and (len(other.training), other.heldout.lengths.tolist()) == (8, [5])


def test_the_digest_is_of_what_is_trained_on(tmp_path: Path) -> None:
    assert read(tmp_path).digest() == read(tmp_path).digest()
    other = [*ROWS[:-1], {"prompt": "q", "completion": "y" * 8}]
    longer: list[dict[str, Any]] = [{"prompt": "two words", "completion": "x"}]
    asked = [read(tmp_path, longer, train_on_prompt=said) for said in (False, True)]
    assert len({data.digest() for data in (read(tmp_path), read(tmp_path, other), *asked)}) == 4


def test_a_chat_template_of_ones_own(tmp_path: Path) -> None:
    words = tokenizer()
    words.chat_template = None
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ]
    with pytest.raises(ConfigError, match="the tokenizer has no chat template"):
        read(tmp_path, rows, words)
    file = tmp_path / "chat.jinja"
    file.write_text("{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<eos>' }}{% endfor %}")
    training = read(tmp_path, rows, with_template(words, str(file), "sft")).training
    assert words.decode(training.token_ids[0]) == "user:q<eos>assistant:a<eos>"
    assert words.decode(training.token_ids[0][training.response_mask[0]]) == "assistant:a<eos>"
    with pytest.raises(ConfigError, match=r"sft\.chat_template=.*none\.jinja cannot be read"):
        with_template(words, str(tmp_path / "none.jinja"), "sft")


def test_a_policy_learns_to_end_with_the_templates_own_token(tmp_path: Path) -> None:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    words.chat_template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '<|im_end|>' }}{% endfor %}"
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    ]
    data = read(tmp_path, rows, words)
    assert data.ends == {words.convert_tokens_to_ids("<|im_end|>"): "<|im_end|>"}
    before_it = int(data.training.lengths[0]) - 1
    assert read(tmp_path, rows, words, max_tokens=before_it, too_long="truncate").ends == {}
    assert read(tmp_path).ends == {}


TEXTS = [{"text": "x" * (2 + n)} for n in range(7)]
"""Of 3 to 9 tokens with EOS; the first has nothing before it."""


def read_texts(folder: Path, rows: list[dict[str, Any]] = TEXTS, **changes: Any) -> PtxData:
    file = folder / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = {"data": {"path": str(file)}, "coefficient": 1.0, "sequences_per_mini_batch": 2, **changes}
    return read_ptx(PtxConfig.model_validate(said), WORDS)


def whole(data: PtxData) -> Demonstrations:
    return data.rows.select(range(len(data.rows)))


def test_of_a_text_for_the_pre_training_loss_all_tokens_count_that_something_comes_before(tmp_path: Path) -> None:
    data = read_texts(tmp_path)
    assert whole(data).lengths.tolist() == list(range(3, 10))
    assert whole(data).response_mask.sum(1).tolist() == list(range(2, 9))
    assert "7 rows, 7 used" in data.summary and "as the model reads it" in data.example
    assert whole(read_texts(tmp_path, ROWS)).response_mask.sum(1).tolist() == list(range(2, 10))
    with pytest.raises(ConfigError, match=r"5 of 7 samples are longer than ppo\.ptx\.max_tokens=4 .* ppo.ptx.too_long"):
        read_texts(tmp_path, max_tokens=4)
    assert whole(read_texts(tmp_path, max_tokens=4, too_long="skip")).lengths.tolist() == [3, 4]
    assert whole(read_texts(tmp_path, max_tokens=4, too_long="truncate")).lengths.tolist() == [3, *[4] * 6]
    with pytest.raises(ConfigError, match=r"ppo\.ptx\.data has no row to learn from"):
        read_texts(tmp_path, max_tokens=2, too_long="skip")


def test_the_rows_of_the_pre_training_loss_are_kept_without_padding(tmp_path: Path) -> None:
    data = read_texts(tmp_path)
    assert data.rows.token_ids.dtype == torch.int32 and len(data.rows.token_ids) == sum(range(3, 10))
    found, all_of_them = data.rows.select([4, 0]), whole(data)
    assert found.token_ids.shape == (2, 7) and found.rows.tolist() == [4, 0]
    assert torch.equal(found.token_ids, all_of_them.token_ids[[4, 0], :7])
    assert torch.equal(found.response_mask, all_of_them.response_mask[[4, 0], :7])
    assert read_texts(tmp_path, too_long="truncate").rows.digest == data.rows.digest
    for other in (TEXTS[::-1], [*TEXTS, TEXTS[0]], [{"text": "xy"}, *TEXTS[1:]]):
        assert read_texts(tmp_path, other).rows.digest != data.rows.digest
    asked = [{"prompt": "qq", "completion": "x"}]
    assert read_texts(tmp_path, asked).rows.digest != read_texts(tmp_path, asked, train_on_prompt=True).rows.digest


def test_the_position_in_a_checkpoint_of_an_earlier_version_is_known(tmp_path: Path) -> None:
    data = read_texts(tmp_path)
    source, resumed = PtxSource(data, seed=5), PtxSource(data, seed=5)
    source.next(3)
    resumed.load_state_dict({**source.state_dict(), "digest": digest_of(whole(data))})
    assert resumed.next(4).rows.tolist() == source.next(4).rows.tolist()
    with pytest.raises(CheckpointError, match="not those of the checkpoint"):
        resumed.load_state_dict({**source.state_dict(), "digest": "0" * 64})


def test_the_rows_of_the_pre_training_loss_are_permutations_whose_position_is_kept(tmp_path: Path) -> None:
    data = read_texts(tmp_path)
    source = PtxSource(data, seed=5)
    drawn = [source.next(3).lengths.tolist() for _ in range(7)]
    lengths = [length for part in drawn for length in part]
    passes = [sorted(lengths[first : first + 7]) for first in (0, 7, 14)]
    assert passes == [list(range(3, 10))] * 3 and drawn[0] + drawn[1] != list(range(3, 9))
    assert PtxSource(data, seed=6).next(7).lengths.tolist() != lengths[:7]
    again, other = PtxSource(data, seed=5), PtxSource(read_texts(tmp_path, TEXTS[1:]), seed=5)
    for _ in range(4):
        again.next(3)
    state = json.loads(json.dumps(again.state_dict()))
    resumed = PtxSource(data, seed=5)
    resumed.load_state_dict(state)
    assert [resumed.next(3).lengths.tolist() for _ in range(3)] == drawn[4:]
    with pytest.raises(CheckpointError, match=r"rows in ppo\.ptx\.data are not those of the checkpoint"):
        other.load_state_dict(state)
