"""Pieces of a sample have the tokens that they have in the whole, whatever a tokenizer puts before a text."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from configs.tiny.inputs import tokenizer as tiny
from roles.text.piece_tokens import piece_tokens
from roles.text.sample_tokens import render_sample, sample_tokens
from tests.unit.wiring import tiny as by_words

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = ["▁r", "▁re", "▁red", "re", "red", "▁2", "▁▁"]
MERGES = [("▁", "r"), ("▁r", "e"), ("▁re", "d"), ("r", "e"), ("re", "d"), ("▁", "2"), ("▁", "▁")]
LETTERS = "▁abcdefghijklmnopqrstuvwxyz0123456789+=:[]/INST<|>"
VOCAB = {token: n for n, token in enumerate(["<unk>", "<s>", "</s>", *BYTES, *LETTERS, *WORDS])}
ADDED = ["<|user|>", "<|assistant|>", "<|end|>"]

ZEPHYR = (
    "{% for m in messages %}{{ '<' + m['role'] + '>\n' + m['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>\n' }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def sentencepiece(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts a space before a text: `prepend` as Llama 2's, others as a `Metaspace` of that scheme."""
    made = Tokenizer(models.BPE(vocab=VOCAB, merges=MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS: dict[str, PreTrainedTokenizerBase] = {
    **{scheme: sentencepiece(scheme) for scheme in ("prepend", "always", "first", "never")},
    "Llama": LlamaTokenizer(vocab=dict(VOCAB), merges=MERGES, legacy=False),
    "legacy Llama": LlamaTokenizer(vocab=dict(VOCAB), merges=MERGES, legacy=True),
}
for one in TOKENIZERS.values():
    one.add_tokens([AddedToken(token, rstrip=True, normalized=False, special=True) for token in ADDED])


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [ZEPHYR, LLAMA2, PHI3])
def test_the_pieces_of_a_chat_are_the_tokens_of_the_chat(kind: str, template: str) -> None:
    tokenizer = TOKENIZERS[kind]
    asked = [{"role": "user", "content": "a b"}]
    said = [("assistant", "red"), ("user", "red?"), ("assistant", "2 ü\n\nred")]
    answer = [{"role": role, "content": content} for role, content in said]
    tokenizer.chat_template = template
    (sample,) = sample_tokens(tokenizer, [render_sample(tokenizer, asked, answer)])
    text = str(tokenizer.apply_chat_template([*asked, *answer], tokenize=False)).rstrip()
    assert sample.token_ids == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_are_joined_as_they_are(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    tokenizer.chat_template = None
    for prompt, response in (("1+1=", "2"), ("it is", " red"), ("a\n", "\nred"), ("a", "ü"), ("", "red"), ("a ", "")):
        (sample,) = sample_tokens(tokenizer, [render_sample(tokenizer, prompt, response)])
        said = tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        assert said.removeprefix(" ") == prompt + response
        assert sample.token_ids[-1] == tokenizer.eos_token_id


def test_a_piece_is_no_part_of_a_token_of_another_one() -> None:
    (pieces,) = piece_tokens(TOKENIZERS["prepend"], [["r", "ed", "", "2"]])
    assert [TOKENIZERS["prepend"].convert_ids_to_tokens(ids) for ids in pieces] == [["▁r"], ["e", "d"], [], ["2"]]


def test_a_tokenizer_that_puts_nothing_before_a_text_is_asked_once() -> None:
    class Asked:
        def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
            self.tokenizer, self.texts = tokenizer, list[str]()

        def __call__(self, texts: list[str], **how: bool) -> object:
            self.texts += texts
            return self.tokenizer(texts, **how)

        def __getattr__(self, name: str) -> object:
            return getattr(self.tokenizer, name)

    asked = Asked(tiny())
    pieces = ["<user>hi<assistant>", "yes<eos>", "\nno"]
    (found,) = piece_tokens(asked, [pieces])  # type: ignore[arg-type]
    assert found == [tiny()(piece, add_special_tokens=False)["input_ids"] for piece in pieces]
    assert [text for text in asked.texts if len(text) > 2] == pieces
    assert piece_tokens(tiny(), []) == [] and piece_tokens(tiny(), [[]]) == [[]]


def test_no_word_is_lost_to_a_token_for_all_unknown_words() -> None:
    """It stands for an ordinary text, and for that text with a word behind it; the tokenizer does not name it."""
    words = by_words.tokenizer()
    assert words.unk_token_id is None and words("a")["input_ids"] == words("aw10")["input_ids"]
    assert piece_tokens(words, [["w3", "w10 w11", "w25"]]) == [[[3], [10, 11], [25]]]
