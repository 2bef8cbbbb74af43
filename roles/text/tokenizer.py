"""The tokenizer of a model folder, with a pad token that differs from EOS. Imports transformers, but not torch."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from roles.errors import ModelError


def load_tokenizer(path: str | Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in the folder `path`, with a pad token of its own: not EOS, and one that has an embedding row."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no tokenizer can be loaded from {path}: {error}; add tokenizer.json and its config"
        ) from error
    own_pad(tokenizer, str(path))
    return tokenizer


def own_pad(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give `tokenizer` a pad token that differs from EOS, chosen among the special tokens it already has.

    A token made for padding is preferred, then a reserved one, then the unknown token, then `<|endoftext|>` where
    another token ends a turn. `source` names the tokenizer in the error.
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
    raise ModelError(
        f"the tokenizer of {source} has pad token {tokenizer.pad_token!r} and EOS {tokenizer.eos_token!r}, and no "
        "unused special token that could pad; set `pad_token` in its tokenizer_config.json to a token that is not EOS"
    )
