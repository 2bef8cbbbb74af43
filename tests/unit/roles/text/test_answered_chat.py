"""What a reward model reads of a chat and its answer, by templates that do not simply write it."""

from __future__ import annotations

import pytest
from jinja2 import TemplateError

from configs.tiny.inputs import tokenizer
from roles.text.answered_chat import answered_chat

PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
WITHOUT_THOUGHTS = "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] | trim }}<eos>{% endfor %}"
APART = (
    "{% for m in messages %}<{{ m.role }}>{% if '</think>' in m.content %}<think>\n{{ m.content.split('</think>')[0]"
    ".split('<think>')[-1].strip('\n') }}\n</think>\n\n{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}"
    "{{ m.content }}{% endif %}<eos>{% endfor %}"
)
"""As Qwen 3's: thoughts are taken out and written anew."""
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
CHAT = [{"role": "user", "content": "hi"}]
SYSTEM = {"role": "system", "content": "be kind"}


def written(template: str, messages: list[dict[str, str]], response: str, finished: bool) -> str:
    words = tokenizer()
    words.chat_template = template
    return answered_chat(words, messages, response, finished=finished)


@pytest.mark.parametrize(("finished", "end"), [(True, "<eos>"), (False, "")])
@pytest.mark.parametrize(
    ("template", "response", "read"),
    [
        (PLAIN, "<think>a</think>", "<think>a</think>"),
        (PLAIN, "", ""),
        (WITHOUT_THOUGHTS, "<think>a</think>", ""),
        (WITHOUT_THOUGHTS, "<think>a</think>b ", "b"),
        (APART, "<think>a</think>", "<think>\na\n</think>\n\n"),
        (APART, "<think>a", "<think>a"),
        (APART, "<think>a</think>\nb", "<think>\na\n</think>\n\nb"),
    ],
)
def test_an_answer_is_what_the_template_makes_of_it(
    template: str, response: str, read: str, finished: bool, end: str
) -> None:
    assert written(template, CHAT, response, finished) == f"<user>hi<eos><assistant>{read}{end}"


def test_a_system_message_that_has_no_place_begins_the_first_message_of_the_user() -> None:
    assert written(NO_SYSTEM, [SYSTEM, *CHAT], "yes", True) == "<user>be kind\n\nhi<eos><assistant>yes<eos>"
    assert written(NO_SYSTEM, [SYSTEM], "yes", False) == "<user>be kind<eos><assistant>yes"
    assert written(PLAIN, [SYSTEM, *CHAT], "yes", False) == "<system>be kind<eos><user>hi<eos><assistant>yes"


def test_what_a_template_refuses_otherwise_stays_refused() -> None:
    with pytest.raises(TemplateError, match="no user"):
        written("{{ raise_exception('no user') }}", CHAT, "yes", True)
