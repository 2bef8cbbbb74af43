"""The tokenizer of a model folder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from roles.errors import ModelError
from roles.text.json_files import read_json_object

SMALL_FILES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""JSON objects that transformers reads to make a tokenizer, where they are there."""


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder `path`, with a pad token that is not EOS if it has a token for that.

    ModelError names the file that is broken.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer("a")
        own_pad(tokenizer)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # readers fail wherever they happen to be; code of its own; Rust's panics
        raise _told(Path(path), error) from error
    return tokenizer


def own_pad(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give `tokenizer` a pad token that differs from EOS, chosen among the special tokens it already has.

    A token made for padding is preferred, then a reserved one, then the unknown token, then `<|endoftext|>` where
    another token ends a turn. Without any of them it stays as it is: padding is told by lengths, not by the token.
    """
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    names = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if number not in taken}
    for mark in ("pad", "reserved", "unused", "unk", "endoftext"):
        for name in names:
            if mark in name.lower():
                tokenizer.pad_token = name
                return


def filler(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token id behind the end of a row, which nothing reads: the pad token's, if there is one."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def _told(folder: Path, error: BaseException) -> ModelError:
    """What is wrong with the files in `folder`, of which transformers says `error`."""
    for name in SMALL_FILES:
        if (folder / name).is_file():
            try:
                read_json_object(folder / name)
            except ModelError as broken:
                return broken
    if "trust_remote_code" in str(error):
        return ModelError(
            "the tokenizer has code of its own (auto_map in its tokenizer_config.json); set trust_remote_code: true "
            "beside path if you trust it"
        )
    said = " ".join(str(error).split())[:200]
    said = f"{type(error).__name__}: {said}" if said else type(error).__name__
    words = folder / "tokenizer.json"
    if words.is_file():
        try:
            Tokenizer.from_file(str(words))
        except KeyboardInterrupt:
            raise
        except BaseException as broken:  # of the library's only kind, or a panic of its Rust
            reason = " ".join(str(broken).split())[:200]
            return ModelError(f"{words} is not a tokenizer ({reason}); fetch it anew")
    return ModelError(
        f"no tokenizer can be loaded from {folder} ({said}); correct or fetch anew its tokenizer.json and "
        "tokenizer_config.json"
    )
