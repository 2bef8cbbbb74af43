"""Messages → tokens: nothing that the policy generated is written again."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from configs.tiny.inputs import tokenizer
from roles.errors import EnvironmentFailed
from roles.generation.turn_format import TurnFormat
from tests.unit.roles.text.test_piece_tokens import LLAMA2, PHI3, TOKENIZERS, ZEPHYR

CHAT = [{"role": "user", "content": "what is the river"}]
NEXT = [{"role": "user", "content": "draw"}]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return tokenizer()


def plain(words: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    made = tokenizer()
    made.chat_template = None
    return made


def test_the_opening_is_the_templates(words: PreTrainedTokenizerFast) -> None:
    text, ids = TurnFormat(words).opening(CHAT)
    assert text == "<bos><user>what is the river<assistant>"
    assert ids == words(text, add_special_tokens=False)["input_ids"]


def test_an_end_that_the_policy_generated_is_not_written_again(words: PreTrainedTokenizerFast) -> None:
    form = TurnFormat(words)
    ended, cut = form.following(NEXT, words.eos_token_id), form.following(NEXT, None)
    assert words.decode(ended) == "<user>draw<assistant>"
    assert words.decode(cut) == "<eos><user>draw<assistant>"
    assert form.following(NEXT, words.pad_token_id) == cut, "another end than the template's stays beside it"


def test_white_space_before_the_templates_end_is_not_written_behind_the_policys() -> None:
    """Llama 2's template writes ` content </s>`."""
    spaced = tokenizer()
    spaced.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<user>' + m['content'] + '<assistant>' }}{% else %}"
        "{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    form = TurnFormat(spaced)
    assert spaced.decode(form.following(NEXT, spaced.eos_token_id)) == "<user>draw<assistant>"
    assert spaced.decode(form.following(NEXT, None)) == " <eos><user>draw<assistant>"
    later = [{"role": "user", "content": "say <eos>"}]
    spaced.chat_template = spaced.chat_template.replace(" + ' ' + eos_token", "")
    assert spaced.decode(form.following(later, spaced.eos_token_id)) == "<user>say <eos><assistant>"


def test_two_turns_are_the_tokens_of_the_whole_chat(words: PreTrainedTokenizerFast) -> None:
    form = TurnFormat(words)
    response = words("the old garden", add_special_tokens=False)["input_ids"] + [words.eos_token_id]
    whole = [*CHAT, {"role": "assistant", "content": "the old garden"}, *NEXT]
    expected: Any = words.apply_chat_template(whole, add_generation_prompt=True, tokenize=False)
    ids = form.opening(CHAT)[1] + response + form.following(NEXT, words.eos_token_id)
    assert words.decode(ids) == expected
    assert form.text(response) == "the old garden"


def test_without_a_template_contents_follow_one_another(words: PreTrainedTokenizerFast) -> None:
    form = TurnFormat(plain(words))
    assert form.opening([*CHAT, *NEXT])[0] == "what is the riverdraw"
    assert words.decode(form.following(NEXT, words.eos_token_id)) == "draw"
    assert words.decode(form.following([*NEXT, *NEXT], None)) == "drawdraw"


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("template", [ZEPHYR, LLAMA2, PHI3])
def test_what_follows_a_response_has_the_tokens_of_the_whole_chat(kind: str, template: str) -> None:
    words = TOKENIZERS[kind]
    words.chat_template = template
    whole: Any = words.apply_chat_template(
        [*CHAT, {"role": "assistant", "content": "red"}, *NEXT], add_generation_prompt=True, tokenize=False
    )
    ids = words(whole, add_special_tokens=False)["input_ids"]
    (response,) = (place for place, token in enumerate(words.convert_ids_to_tokens(ids)) if token in ("red", "▁red"))
    assert TurnFormat(words).following(NEXT, None) == ids[response + 1 :]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_text_that_follows_a_response_begins_without_a_space(kind: str) -> None:
    words = TOKENIZERS[kind]
    words.chat_template = None
    (two,) = words.convert_tokens_to_ids(["2"])
    assert TurnFormat(words).following([{"role": "user", "content": "2"}], None) == [two]


def test_a_template_that_does_not_take_turns_is_refused() -> None:
    odd = tokenizer()
    odd.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(EnvironmentFailed, match="does not write an assistant's message once"):
        TurnFormat(odd).following(NEXT, None)
    odd.chat_template = "{{ raise_exception('only users') }}"
    with pytest.raises(EnvironmentFailed, match="only users"):
        TurnFormat(odd).opening(CHAT)
