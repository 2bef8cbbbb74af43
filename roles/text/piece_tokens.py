"""Texts that go on one behind the other → the tokens of each, which never become one token with those of another.

SentencePiece's tokenizers (Llama 2, Mistral 7B, TinyLlama) put a space before a text. Only the first piece of a sample
gets it: where a policy goes on, it writes none.

    ["1+1=", "2"]          →  ▁ 1 + 1 = | 2
    ["[INST] a", " red"]   →  ▁[ INST ] ▁a | ▁red

Behind one of the tokenizer's added tokens a piece begins as the tokenizer has it there: with a space, or without the
white space that the token takes away.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

FRONTS = ("\n", "a")
"""Ordinary texts to tokenise a piece behind; the second one for pieces that become one token with the first."""


def piece_tokens(tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sequence[str]]) -> list[list[list[int]]]:
    """Token ids of each piece of each sample, without special tokens around them."""
    texts = [text for sample in samples for text in sample]
    found = _tokens(tokenizer, texts)
    for fronts, rows in _changed(tokenizer, samples, found).items():
        left = rows
        for front in fronts:
            behind = dict(zip(left, _behind(tokenizer, front, [texts[row] for row in left]), strict=True))
            for row, ids in behind.items():
                found[row] = found[row] if ids is None else ids
            left = [row for row, ids in behind.items() if ids is None]
    parts = iter(found)
    return [[next(parts) for _ in sample] for sample in samples]


def _puts_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    (alone,) = _tokens(tokenizer, ["a"])
    return any(ids not in (None, alone) for front in FRONTS for ids in _behind(tokenizer, front, ["a"]))


def _changed(
    tokenizer: PreTrainedTokenizerBase, samples: Sequence[Sequence[str]], found: Sequence[list[int]]
) -> dict[tuple[str, ...], list[int]]:
    """Rows of the pieces that may have other tokens behind others than alone, by what to tokenise them behind."""
    added, spaced = tokenizer.added_tokens_decoder, _puts_a_space(tokenizer)
    rows, row = dict[tuple[str, ...], list[int]](), 0
    for sample in samples:
        last = None
        for _ in sample:
            if last is not None and (spaced or (last in added and added[last].rstrip)):
                rows.setdefault((added[last].content,) if last in added else FRONTS, []).append(row)
            last = found[row][-1] if found[row] else last
            row += 1
    return rows


def _behind(tokenizer: PreTrainedTokenizerBase, front: str, texts: Sequence[str]) -> list[list[int] | None]:
    """Token ids of each text behind `front`; None where they cannot be told from those of `front`, as where both are
    one token for an unknown word."""
    head, *whole = _tokens(tokenizer, [front, *(front + text for text in texts)])
    known = bool(head) and tokenizer.unk_token_id not in head
    return [ids[len(head) :] if known and ids[: len(head)] == head and ids != head else None for ids in whole]


def _tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if texts else []
