"""The pad token that `load_tokenizer` settles on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from roles.errors import ModelError
from roles.text.tokenizer import filler, load_tokenizer


def write(folder: Path, special: list[str], **roles: str) -> None:
    words = Tokenizer(models.WordLevel({token: i for i, token in enumerate(["a", "b", *special])}, unk_token="a"))
    words.add_special_tokens(special)
    PreTrainedTokenizerFast(tokenizer_object=words, **roles).save_pretrained(folder)


@pytest.mark.parametrize("pad", [{}, {"pad_token": "<end>"}], ids=["none", "eos"])
@pytest.mark.parametrize(
    ("special", "chosen"),
    [
        (["<end>", "<|endoftext|>", "<unk>", "<|reserved_0|>", "<|fim_pad|>"], "<|fim_pad|>"),
        (["<end>", "<|endoftext|>", "<unk>", "<|reserved_0|>"], "<|reserved_0|>"),
        (["<end>", "<|endoftext|>", "<unk>"], "<unk>"),
        (["<end>", "<|endoftext|>"], "<|endoftext|>"),
    ],
)
def test_a_pad_is_chosen_among_the_tokens_there(
    tmp_path: Path, special: list[str], chosen: str, pad: dict[str, str]
) -> None:
    write(tmp_path, special, eos_token="<end>", **pad)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token == chosen
    assert tokenizer.pad_token_id == 2 + special.index(chosen)
    assert len(tokenizer) == 2 + len(special)


def test_a_pad_that_is_not_eos_stays(tmp_path: Path) -> None:
    write(tmp_path, ["<end>", "<|fim_pad|>", "<p>"], eos_token="<end>", pad_token="<p>")
    assert load_tokenizer(tmp_path).pad_token == "<p>"


def test_eos_and_bos_never_pad(tmp_path: Path) -> None:
    write(tmp_path, ["<|endoftext|>", "<bos_pad>"], eos_token="<|endoftext|>", bos_token="<bos_pad>")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.pad_token not in ("<|endoftext|>", "<bos_pad>")
    assert filler(tokenizer) == tokenizer.eos_token_id


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


def test_a_file_that_makes_the_library_panic_is_refused_with_its_name(tmp_path: Path) -> None:
    """A panic of Rust is no Exception of Python."""
    words = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="b").save_pretrained(tmp_path)
    load_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    said = json.loads(file.read_text())
    said["model"]["continuing_subword_prefix"] = "x" * 300
    file.write_text(json.dumps(said))
    with pytest.raises(ModelError, match=r"tokenizer\.json is not a tokenizer \(range .*\); fetch it anew"):
        load_tokenizer(tmp_path)
