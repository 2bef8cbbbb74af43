"""What stands at the edges of a prompt, for tokenizers of every kind; contents in parts."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from configs.tiny.inputs import tokenizer as tiny
from roles.generation.turn_format import TurnFormat
from roles.text.messages import plain_messages
from roles.text.prompt_tokens import chat_text, prompt_tokens, shown_prompt


def putting(single: str) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with a post-processor: `$A` is the text, `<bos>` and `<eos>` what it puts around it."""
    made = tiny()
    special = [(token, made.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>", "<user>")]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return made


def flagged(**flags: bool) -> PreTrainedTokenizerBase:
    """A Llama tokenizer whose configuration says what it adds; words of one letter."""
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", "▁h", *"ahio", "\n"])}
    return LlamaTokenizer(vocab=vocab, merges=[("▁", "h")], **flags)


def read(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    (ids,) = prompt_tokens(tokenizer, [text], chat=False)
    return str(tokenizer.decode(ids))


@pytest.mark.parametrize(
    ("single", "text", "expected"),
    [
        ("$A", "hi", "hi"),
        ("<bos> $A", "hi", "<bos>hi"),
        ("$A <eos>", "hi", "hi"),
        ("<bos> $A <eos>", "hi", "<bos>hi"),
        ("<bos> $A <eos>", "", "<bos>"),
        ("<bos> $A <eos>", "<bos>hi", "<bos>hi"),
        ("<bos> $A", "<bos><user>hi<assistant>", "<bos><user>hi<assistant>"),
        ("<bos> $A", "\n <bos>hi", "\n <bos>hi"),
        ("<bos> $A", "hi <bos> there", "<bos>hi <bos> there"),
        ("<bos> $A", "<user><bos>hi", "<bos><user><bos>hi"),
        ("<bos> <user> $A <eos>", "hi", "<bos><user>hi"),
        ("<bos> <user> $A <eos>", "<bos><user>hi", "<bos><user>hi"),
        ("<bos> $A <eos>", "hi<eos>", "<bos>hi<eos>"),
    ],
)
def test_a_text_gets_what_comes_before_it_once_and_nothing_after(single: str, text: str, expected: str) -> None:
    assert read(putting(single), text) == expected


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_the_flags_of_a_tokenizers_configuration(bos: bool, eos: bool) -> None:
    tokenizer = flagged(add_bos_token=bos, add_eos_token=eos)
    begin, end = [1] * bos, [2] * eos
    assert tokenizer("hi")["input_ids"] == [*begin, 4, 7, *end], "what the tokenizer itself would do"
    assert prompt_tokens(tokenizer, ["hi", "<s>hi"], chat=False)[0] == [*begin, 4, 7]
    assert prompt_tokens(tokenizer, ["<s>hi"], chat=False)[0][:2].count(1) == 1


def test_bos_may_be_the_token_that_ends() -> None:
    words = Tokenizer(models.WordLevel({"<|end|>": 0, "hi": 1, "a": 2}, unk_token="<|end|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)])
    same = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|end|>", eos_token="<|end|>")
    assert prompt_tokens(same, ["hi", "<|end|>hi"], chat=False) == [[0, 1], [0, 1]]


@pytest.mark.parametrize("single", ["<bos> $A <eos>", "$A <eos>", "$A"])
def test_a_chat_is_what_the_template_writes(single: str) -> None:
    tokenizer = putting(single)
    text = chat_text(tokenizer, [{"role": "user", "content": "hi"}])
    (ids,) = prompt_tokens(tokenizer, [text], chat=True)
    assert tokenizer.decode(ids) == text == "<bos><user>hi<assistant>"


def test_the_first_words_of_an_environment_follow_the_same_rule() -> None:
    tokenizer = putting("<bos> $A <eos>")
    tokenizer.chat_template = None
    form = TurnFormat(tokenizer)
    assert tokenizer.decode(form.opening([{"role": "user", "content": "hi"}])[1]) == "<bos>hi"
    assert tokenizer.decode(form.opening([{"role": "user", "content": "<bos>hi"}])[1]) == "<bos>hi"
    assert tokenizer.decode(form.following([{"role": "user", "content": "on"}], None)) == "on"


def test_one_row_is_shown_as_given_and_as_read() -> None:
    tokenizer = putting("<bos> $A <eos>")
    (ids,) = prompt_tokens(tokenizer, ["hi"], chat=False)
    assert shown_prompt(tokenizer, "hi", ids, chat=False).splitlines() == [
        'given: "hi"',
        'read:  "<bos>hi"',
        f"       {len(ids)} tokens: {' '.join(map(str, ids))}",
        "rule:  <bos> begins a text, once; <eos>, which the tokenizer puts after a text, is left out",
    ]
    long = "a\n" * 500
    (ids,) = prompt_tokens(tokenizer, [long], chat=False)
    shown = shown_prompt(tokenizer, long, ids, chat=False)
    assert len(shown.splitlines()) == 4 and all(len(line) < 150 for line in shown.splitlines())
    assert "rule" not in shown_prompt(tiny(), "hi", [3], chat=False)
    assert "rule" not in shown_prompt(tokenizer, "hi", [3], chat=True)


# Messages


def part(kind: str, **values: Any) -> dict[str, Any]:
    return {"type": kind, **values}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("hi", "hi"),
        ([part("text", text="hi")], "hi"),
        ([part("text", text="a "), part("text", text="b", image_url=None)], "a b"),
        ([], ""),
    ],
)
def test_contents_are_text(content: Any, expected: str) -> None:
    messages = [{"role": "system", "content": "s", "name": None}, {"role": "user", "content": content}]
    assert plain_messages(messages) == [{"role": "system", "content": "s"}, {"role": "user", "content": expected}]
    assert chat_text(tiny(), messages[1:]) == f"<bos><user>{expected}<assistant>"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (
            [{"role": "user", "content": [part("image_url", image_url={"url": "x"})]}],
            "number 0.*part of type image_url",
        ),
        ([{"role": "user", "content": [part("text", text="a"), part("image")]}], "part of type image"),
        ([{"role": "user", "content": [part("input_audio", input_audio={})]}], "part of type input_audio"),
        ([{"role": "user", "content": [part("text", text=None)]}], "number 0.*part {'type': 'text'"),
        ([{"role": "user", "content": [part("text", content="a")]}], "only text is read"),
        ([{"role": "user", "content": [{"text": "a"}]}], "part {'text': 'a'}"),
        ([{"role": "user", "content": ["a"]}], "part 'a'; only text is read"),
        (
            [{"role": "user", "content": "a"}, {"role": "user", "content": {"text": "a"}}],
            "number 1.*content is an object",
        ),
        ([{"role": "user", "content": 5}], "content is a number"),
        ([{"role": 5, "content": "a"}], "the role 5"),
        ([{"role": "user", "content": None}], "without role or content"),
        ([{"content": "a"}], "without role or content"),
        ([], "no list of messages"),
        ("hi", "no list of messages"),
        (["hi"], "no list of messages"),
    ],
)
def test_what_is_no_text_is_refused_by_name(messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plain_messages(messages)
