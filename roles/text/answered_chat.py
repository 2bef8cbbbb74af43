"""A chat with its answer, as another model's chat template writes it: the text that a reward model reads.

- A template may change the answer, for example leave out what was thought before `</think>`: that is how the reward
  model was trained.
- An answer that was cut has no end of a turn.
- A template that has no place for a system message gets it as the beginning of the first user message.
- Behind the mark that ends a turn, many templates write a line break. `tetrarch reward` and OpenRLHF train without it,
  and with EOS where there is no mark; others (TRL) train on what the template writes, up to that line break.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from roles.text.json_files import read_json_object
from roles.text.messages import Messages, Tools, plain_messages
from roles.text.prompt_tokens import prompt_tokens, written_chat

ANSWER = "an answer"
"""An answer that shows what a template writes after one."""

TRAINED_TO_ITS_END = ("score_scale", "value_head_prefix")
"""Keys of config.json that Tetrarch and OpenRLHF write."""


def reads_to_the_end(folder: str | Path) -> bool:
    """Whether the reward model in `folder` was trained to read a finished answer up to the token that ends it, and not
    what the template writes behind it."""
    config = read_json_object(Path(folder) / "config.json")
    return any(key in config for key in TRAINED_TO_ITS_END)


def answered_tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, finished: bool, to_the_end: bool) -> list[int]:
    """Token ids of a text of `answered_chat`; with `to_the_end`, as `reads_to_the_end` says, those of a finished answer
    end with the mark of the template or with EOS."""
    marks = tokenizer.added_tokens_decoder if finished and to_the_end else {}
    if text.rstrip().endswith(tuple(token.content for token in marks.values())):
        text = text.rstrip()
    (ids,) = prompt_tokens(tokenizer, [text], chat=True)
    ended = not (finished and to_the_end) or ids[-1] in {tokenizer.eos_token_id, *marks}
    return ids if ended else [*ids, tokenizer.eos_token_id]


def answered_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Any, response: str, *, finished: bool, tools: Tools = ()
) -> str:
    """The text of `messages` and `response`. ValueError if the messages are no text; the template's own error if it
    refuses them."""
    return _ended(tokenizer, [*plain_messages(messages), {"role": "assistant", "content": response}], finished, tools)


def chat_with_answer(
    tokenizer: PreTrainedTokenizerBase, messages: Any, response: str, *, finished: bool, tools: Tools = ()
) -> str:
    """As `answered_chat`, but the messages may be a whole conversation with an environment, which has the response as
    its last messages: it is written as it is."""
    turns = plain_messages(messages)
    last = turns[-1]
    if last["role"] == "assistant" and response.strip().endswith(last["content"].strip()):
        return _ended(tokenizer, turns, finished, tools)
    return answered_chat(tokenizer, messages, response, finished=finished, tools=tools)


def _ended(tokenizer: PreTrainedTokenizerBase, turns: Messages, finished: bool, tools: Tools) -> str:
    try:
        text = written_chat(tokenizer, turns, tools)
    except Exception:  # a template is a program: it raises what it likes
        folded = _without_system(turns)
        if folded == turns:
            raise
        text = written_chat(tokenizer, folded, tools)
    return text if finished else text.removesuffix(_end(tokenizer))


@cache
def _end(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the template writes after the last answer."""
    chat = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": ANSWER}]
    _, found, end = written_chat(tokenizer, chat, ()).rpartition(ANSWER)
    return end if found else ""


def _without_system(turns: Messages) -> Messages:
    """A system message at the beginning becomes that of the first user message."""
    if turns[0]["role"] != "system":
        return turns
    system, *others = turns
    if others[0]["role"] != "user":
        return [{**system, "role": "user"}, *others]
    return [{**others[0], "content": f"{system['content']}\n\n{others[0]['content']}"}, *others[1:]]
