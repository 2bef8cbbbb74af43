"""The tokenizer of a GGUF file: transformers' own conversion, corrected by the keys of the file that it does not read.

A file flows in, a tokenizer with as many tokens as the file flows out; or a ModelError that names the key that would be
lost.
"""

from __future__ import annotations

import json
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from roles.errors import ModelError
from roles.model_files.gguf_header import GgufFile
from roles.text.tokenizer import own_pad

GPT2_SPLITS = frozenset(
    {*("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "roberta-bpe")}
)
"""Values of `tokenizer.ggml.pre` for which a text is split as GPT-2 splits it, which is transformers' default."""

DIGIT_SPLITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})
"""Values of `tokenizer.ggml.pre` for which each digit is split off first, and the rest as GPT-2 splits it."""


def gguf_tokenizer(file: GgufFile) -> Any:
    """The tokenizer of `file`."""
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in file.metadata.items()}
    adds = {key: bool(said[key]) for key in ("add_bos_token", "add_eos_token") if key in said}
    made = AutoTokenizer.from_pretrained(file.path.parent, gguf_file=file.path.name, **adds)
    tokenizer = _without_strangers(made, said["tokens"])
    _check_ends(tokenizer, file, said)
    if said["model"] == "gpt2":
        _split(tokenizer, file, said.get("pre", "gpt-2"))
    elif said["model"] == "llama" and "add_space_prefix" in said:
        _check_space(tokenizer, file, said["add_space_prefix"])
    _pad(tokenizer)
    return tokenizer


def _without_strangers(tokenizer: Any, tokens: int) -> Any:
    """`tokenizer` without tokens that the file does not have: transformers gives a byte-level one GPT-2's
    `<|endoftext|>`, beyond the model's embeddings."""
    if len(tokenizer) <= tokens:
        return tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["added_tokens"] = [token for token in backend["added_tokens"] if token["id"] < tokens]
    names = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    own = {name: token for name, token in names.items() if tokenizer.convert_tokens_to_ids(token) < tokens}
    dropped = dict.fromkeys(names.keys() - own.keys())
    adds = {key: getattr(tokenizer, key) for key in ("add_bos_token", "add_eos_token") if hasattr(tokenizer, key)}
    made = type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), **own, **dropped, **adds)
    made.chat_template = tokenizer.chat_template
    return made


def _check_ends(tokenizer: Any, file: GgufFile, said: dict[str, Any]) -> None:
    """Raise ModelError if the tokenizer begins or ends a text with other tokens than the file says."""
    if "eos_token_id" not in said:
        raise ModelError(
            f"{file.path} does not say where a response ends (tokenizer.ggml.eos_token_id); use the model's own "
            "Hugging Face folder"
        )
    for name in ("eos_token_id", "bos_token_id"):
        if name in said and getattr(tokenizer, name) != said[name]:
            raise file.lost(f"tokenizer.ggml.{name}={said[name]}, a token that is not read as one")


def _split(tokenizer: Any, file: GgufFile, kind: str) -> None:
    if kind in DIGIT_SPLITS:
        bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False)
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_of])
    elif kind not in GPT2_SPLITS and kind not in GGUF_PRE_TOKENIZER_SPLITS:
        raise file.lost(f"tokenizer.ggml.pre={kind!r}")


def _check_space(tokenizer: Any, file: GgufFile, wanted: bool) -> None:
    """Raise ModelError if the tokenizer does not put a space before a text as the file says (`wanted`)."""
    backend, text = tokenizer.backend_tokenizer, "a"
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer is not None else [(text, None)]
    if pieces[0][0].startswith(("▁", " ")) != wanted:
        raise file.lost(f"tokenizer.ggml.add_space_prefix={wanted}")


def _pad(tokenizer: Any) -> None:
    """A pad token that is not EOS: where none is made for it, another special token, BOS as the last."""
    own_pad(tokenizer)
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    names = {number: token for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    others = sorted(names.keys() - {tokenizer.eos_token_id}, key=lambda number: number == tokenizer.bos_token_id)
    if others:
        tokenizer.pad_token = names[others[0]].content
