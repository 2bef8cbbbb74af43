"""Tool calls as chat templates get them: as vLLM gives them, whatever a data set or a client writes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from vllm.renderers.chat_utils import _postprocess_messages

from configs.tiny.inputs import tokenizer
from roles.text.answered_chat import answered_chat
from roles.text.loss_spans import assistant_spans
from roles.text.messages import Messages, plain_messages, with_objects
from roles.text.prompt_tokens import chat_text

USER = {"role": "user", "content": "q"}
TURN = (
    "{% if m.role == 'assistant' %}BEGIN{{ m.content }}{% for call in m.tool_calls or [] %}"
    "[{{ call.function.name }} ARGUMENTS]{% endfor %}<eos>END{% else %}{{ m.content }}{% endif %}"
)
EACH = f"{{% for m in messages %}}<{{{{ m.role }}}}>{TURN}{{% endfor %}}"
EACH += "{% if add_generation_prompt %}<assistant>{% endif %}"
READS = "{{ call.function.arguments | tojson }}"
JOINS = "{{ '' + call.function.arguments }}"
"""As DeepSeek's templates do."""


def words(arguments: str, *, marked: bool = False) -> Any:
    made = tokenizer()
    begin, end = ("{% generation %}", "{% endgeneration %}") if marked else ("", "")
    made.chat_template = EACH.replace("ARGUMENTS", arguments).replace("BEGIN", begin).replace("END", end)
    return made


def call(arguments: Any) -> Messages:
    function = {"name": "draw", **({} if arguments is None else {"arguments": arguments})}
    return [USER, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]


GIVEN = [{"x": "red", "n": 2}, '{"x": "red", "n": 2}', "", None, "{", "[1]", "null", "5", [1], {}, "[" * 5000]


@pytest.mark.parametrize("given", GIVEN)
def test_arguments_are_those_that_vllm_gives_to_a_template(given: Any) -> None:
    chat = call(given)
    before, theirs = copy.deepcopy(chat), copy.deepcopy(chat)
    if given != "[" * 5000:  # vLLM lets the error through
        _postprocess_messages(theirs)  # type: ignore[arg-type]
        assert with_objects(chat) == theirs
    (written,) = with_objects(chat)[1]["tool_calls"]
    assert written["function"]["arguments"] == ({"x": "red", "n": 2} if "x" in str(given) else {})
    assert chat == before, "what a reward and a file get of the data set stays as it is"


def test_without_calls_a_message_is_one_without_the_key() -> None:
    chat: Messages = [{**USER, "tool_calls": ["kept"]}, {"role": "assistant", "content": "a", "tool_calls": []}]
    theirs = copy.deepcopy(chat)
    _postprocess_messages(theirs)  # type: ignore[arg-type]
    assert with_objects(chat) == theirs == [chat[0], {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("given", [{"x": "red"}, '{"x": "red"}'])
def test_every_way_to_write_a_chat_reads_the_arguments(given: Any, marked: bool) -> None:
    made, chat = words(READS, marked=marked), plain_messages(call(given))
    expected = '<user>q<assistant>[draw {"x": "red"}]<eos>'
    assert chat_text(made, chat) == f"{expected}<assistant>"
    text, spans = assistant_spans(made, chat)
    assert (text, [text[start:end] for start, end in spans]) == (expected, ['[draw {"x": "red"}]<eos>'])
    assert answered_chat(made, [*chat, USER], "a", finished=True) == f"{expected}<user>q<assistant>a<eos>"


def test_a_template_that_joins_texts_gets_the_text() -> None:
    made = words(JOINS)
    assert chat_text(made, call('{"x": "red"}')) == '<user>q<assistant>[draw {"x": "red"}]<eos><assistant>'
    with pytest.raises(TypeError):
        chat_text(made, call({"x": "red"}))
