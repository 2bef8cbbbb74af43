"""An environment's messages → tokens of the policy's tokenizer. Never touches what the policy has generated.

With a chat template, messages are written as the template writes them; without one, their contents are joined.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from roles.errors import EnvironmentFailed
from roles.text.messages import Messages
from roles.text.piece_tokens import piece_tokens
from roles.text.prompt_tokens import begins_text, chat_text, prompt_tokens

MARK = "\ue000answer\ue001"
"""Stands for a response in a rendered template; no template contains it or changes it."""
ORDINARY = "a"
"""Stands for the end of a response that is no token of its own."""


class TurnFormat:
    """How a conversation is written as tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self.chat = tokenizer.chat_template is not None
        """Whether the tokenizer has a chat template, which then writes the messages."""

    def opening(self, messages: Messages) -> tuple[str, list[int]]:
        """The first messages up to where the response begins: text, and tokens as `roles.text.prompt_tokens` makes
        them."""
        text = self._template(messages) if self.chat else "".join(message["content"] for message in messages)
        return text, prompt_tokens(self._tokenizer, [text], chat=self.chat)[0]

    def following(self, messages: Messages, end: int | None) -> list[int]:
        """Tokens between a response and the policy's next one.

        The template's own end of a response is left out if the policy has generated it, with the white space before
        it. `end`: the token with which the response ended; None if a limit cut it.
        """
        if not self.chat:
            front = ORDINARY if end is None else str(self._tokenizer.decode([end]))
            return self._behind(front, "".join(message["content"] for message in messages))
        before = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
        parts = self._template([*before, *messages]).split(MARK)
        if len(parts) != 2:
            raise EnvironmentFailed(
                "the chat template does not write an assistant's message once and as it is, so no further turn can be "
                "added to one; use a template that does"
            )
        tokens = self._behind(ORDINARY, parts[1])
        if end is not None and begins_text(tokens, [end], self._tokenizer):
            return tokens[tokens.index(end) + 1 :]
        return tokens

    def text(self, response: Sequence[int]) -> str:
        """A response's text, without special tokens."""
        return str(self._tokenizer.decode(response, skip_special_tokens=True))

    def _template(self, messages: Messages) -> str:
        try:
            return chat_text(self._tokenizer, messages)
        except Exception as error:  # a template is a program, which may raise anything
            raise EnvironmentFailed(
                f"the environment's messages {messages!r} do not go through the chat template: {error}"
            ) from error

    def _behind(self, front: str, text: str) -> list[int]:
        """Tokens of a text that goes on behind `front`."""
        return piece_tokens(self._tokenizer, [[front, text]])[0][1]
