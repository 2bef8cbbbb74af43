"""The assistant's part of a chat, as the templates of common families write it."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from configs.tiny.inputs import tokenizer
from roles.text.loss_spans import assistant_spans
from roles.text.messages import Messages
from roles.text.sample_tokens import render_sample, sample_tokens

HEAD = "{% for m in messages %}"
CHATML = (
    HEAD + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}" + HEAD + "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Qwen.<|im_end|>\n' }}{% endif %}" + CHATML
)
# Thoughts are shown, or an empty thought is written, only behind the last question.
QWEN3 = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}" + HEAD + "{% set content = m['content'] %}{% set thought = '' %}"
    "{% if m['role'] == 'assistant' and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}{{ content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + HEAD + "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# The system prompt stands before the last question, wherever that is.
MISTRAL = (
    "{{ bos_token }}{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set system = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}" + HEAD + "{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.index0 == ns.last %}"
    "{{ system }}{% endif %}{{ m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}"
    "{% endfor %}"
)
MARKED = (
    HEAD + "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "ChatML": (CHATML, "<|im_end|>"),
    "Llama 3": (LLAMA3, "<|eot_id|>"),
    "Qwen 2.5": (QWEN25, "<|im_end|>"),
    "Qwen 3": (QWEN3, "<|im_end|>"),
    "Gemma": (GEMMA, "<end_of_turn>"),
    "Mistral": (MISTRAL, "</s>"),
    "marked": (MARKED, "<|im_end|>"),
}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>"]


def words(name: str) -> PreTrainedTokenizerFast:
    made = tokenizer()
    more = [*SPECIAL, "<start_of_turn>", "<end_of_turn>", "</s>"]
    made.add_tokens(more, special_tokens=True)
    made.chat_template, end = TEMPLATES[name]
    # Gemma's turns end with another token than its texts.
    made.eos_token = "<eos>" if name == "Gemma" else end
    return made


def chat(*contents: str, system: str | None = None) -> Messages:
    turns = [{"role": ("user", "assistant")[n % 2], "content": content} for n, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *turns] if system else turns


def trained(name: str, messages: Messages) -> list[str]:
    text, spans = assistant_spans(words(name), messages)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_turn_of_the_assistant_with_what_ends_it(name: str) -> None:
    end = TEMPLATES[name][1]
    space = " " if name == "Mistral" else ""
    thought = "<think>\n\n</think>\n\n" if name == "Qwen 3" else ""
    assert trained(name, chat("q", "a")) == [f"{space}{thought}a{end}"]
    # The same content twice, and in the user's words.
    assert trained(name, chat("a", "a", "a", "a")) == [f"{space}a{end}", f"{space}{thought}a{end}"]


def test_a_system_prompt_that_moves() -> None:
    assert trained("Mistral", chat("q", "a", "q", "b", system="s")) == [" a</s>", " b</s>"]
    with pytest.raises(ValueError, match=r"do not go through .* template: System role not supported"):
        render_sample(words("Gemma"), chat("q", system="s"), "a")


def test_earlier_thoughts_are_not_trained_where_the_template_drops_them() -> None:
    said = ["<think>\nx\n</think>\n\na", "<think>\ny\n</think>\n\nb"]
    assert trained("Qwen 3", chat("q", said[0], "q", said[1])) == ["a<|im_end|>", f"{said[1]}<|im_end|>"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_of_a_sample_are_those_of_a_prompt_and_then_of_what_was_generated(name: str) -> None:
    made = words(name)
    prompt = made.apply_chat_template(chat("q", "a", "q"), tokenize=False, add_generation_prompt=True)
    rendered = render_sample(made, chat("q", "a", "q"), chat("q", "b")[1:])
    (sample,) = sample_tokens(made, [rendered])
    asked = made(prompt, add_special_tokens=False)["input_ids"]
    assert sample.token_ids[: len(asked)] == asked and not any(sample.trained[: len(asked)])
    assert all(sample.trained[len(asked) :])
    assert made.decode(sample.token_ids[len(asked) :]).strip().endswith(f"b{TEMPLATES[name][1]}")
    assert sample.token_ids.count(made.convert_tokens_to_ids("<eos>")) == 0


@pytest.mark.parametrize("when", ["true", "loop.last"])
def test_marks_of_the_prompt_s_turns_are_not_trained_however_many_a_turn_has(when: str) -> None:
    """A thought and a content, each with marks of its own; of the second turn alone in the other cases."""
    made = words("marked")
    made.chat_template = (
        HEAD + "{{ m['role'] + ':' }}{% if m['role'] == 'assistant' %}{% if " + when + " %}{% generation %}"
        "{{ '<t>' }}{% endgeneration %}{% endif %}{{ '|' }}{% generation %}{{ m['content'] + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
    )
    rendered = render_sample(made, chat("q", "a", "r"), chat("q", "b")[1:])
    assert [piece.text for piece in rendered.pieces if piece.trained] == ["<t>", "b<|im_end|>"]
    assert rendered.pieces[0].text.endswith("a<|im_end|>\nuser:r\nassistant:")


def test_only_the_last_turn_has_marks_and_two_of_them() -> None:
    made = words("marked")
    made.chat_template = (
        HEAD + "{{ m['role'] + ':' }}{% if loop.last %}{% generation %}{{ '<t>' }}{% endgeneration %}{{ '|' }}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] + '\n' }}{% endif %}"
        "{% endfor %}"
    )
    rendered = render_sample(made, chat("q", "a", "r"), chat("q", "b")[1:])
    assert [piece.text for piece in rendered.pieces if piece.trained] == ["<t>", "b"], "as many marks as turns"


@pytest.mark.parametrize("thought", ["", "<think>\n\n</think>\n\n"])
@pytest.mark.parametrize("content", ["", "let me"])
def test_a_turn_that_calls_tools_is_trained_whole(thought: str, content: str) -> None:
    """Also without a content, where the template writes it otherwise than at the end of a chat, as Qwen 3's does."""
    made = words("ChatML")
    made.chat_template = (
        HEAD + "{{ '<|im_start|>' + m['role'] + '\n' }}{% if loop.last and m['role'] == 'assistant' %}{{ '"
        f"{thought}"
        "' }}{% endif %}{{ m['content'] }}{% for call in m.tool_calls or [] %}{% if m['content'] or not loop.first %}"
        "{{ '\n' }}{% endif %}{{ '<tool_call>' + call.name + '</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    draw = {"role": "assistant", "content": content, "tool_calls": [{"name": "draw"}, {"name": "ink"}]}
    result = {"role": "tool", "content": "done"}
    text, spans = assistant_spans(made, [*chat("q"), draw, result, draw, result, *chat("q", "b")[1:]])
    called = f"{content}\n<tool_call>draw</tool_call>\n<tool_call>ink</tool_call><|im_end|>".lstrip()
    assert [text[start:end] for start, end in spans] == [called, called, f"{thought}b<|im_end|>"]
    assert [text[:start].endswith("<|im_start|>assistant\n") for start, _ in spans] == [True] * 3


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    made: Any = words("ChatML")
    made.chat_template = (
        "{% for m in messages %}{{ m['role'] + ':' + (m['content'] | upper) + messages | length | string }}{% endfor %}"
    )
    with pytest.raises(ValueError, match=r"number 1\) that cannot be found .* put {% generation %}"):
        assistant_spans(made, chat("q", "a", "q", "b"))


def test_a_turn_without_an_end_gets_the_end_of_texts() -> None:
    made = words("ChatML")
    made.chat_template = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    (sample,) = sample_tokens(made, [render_sample(made, "q", chat("q", "a")[1:])])
    assert made.decode(sample.token_ids) == "user:q\nassistant:a\n<|im_end|>"


def test_a_chat_that_the_assistant_begins() -> None:
    messages = [{"role": "assistant", "content": "hello"}, *chat("q", "a")]
    assert trained("ChatML", messages) == ["hello<|im_end|>", "a<|im_end|>"]


def test_an_empty_turn_that_the_template_writes_otherwise_later_is_named() -> None:
    with pytest.raises(ValueError, match=r"an empty message of the assistant \(number 1\); fill it"):
        assistant_spans(words("Qwen 3"), chat("q", " ", "q", "b"))


def test_a_template_that_never_ends_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("roles.text.sample_tokens.TEMPLATE_S", 0.2)
    made = words("ChatML")
    made.chat_template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(ValueError, match=r"chat template: it did not end within 0\.2 s"):
        render_sample(made, chat("q"), "a")


def test_a_mistyped_role_is_refused_as_in_a_prompt() -> None:
    answers = [{"role": "asistant", "content": "a"}, *chat("q", "b")]
    with pytest.raises(ValueError, match="does not know the role 'asistant' of message 1; did you mean `assistant`"):
        render_sample(words("ChatML"), chat("q"), answers)
