"""A prompt of a request → the tokens that the policy reads: texts, chats and token ids flow in."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from orchestrator.stages.serving_jobs import PromptRead
from roles.text.messages import LONE_SURROGATE, plain_messages
from roles.text.prompt_tokens import chat_text, prompt_tokens


class Unreadable(ValueError):
    """The prompt cannot be answered; the message says why, to who asked."""


class PromptReader:
    """Reads prompts with the policy's tokenizer, as training does."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest_sample: int, longest_response: int) -> None:
        self._tokenizer, self._sample, self._response = tokenizer, longest_sample, longest_response

    def read(self, prompt: str | list[Any]) -> PromptRead:
        """A text, the messages of a chat, or token ids. Unreadable says what is wrong."""
        if isinstance(prompt, str):
            found = self._text(prompt)
        elif prompt and all(isinstance(token, int) for token in prompt):
            found = self._tokens(prompt)
        else:
            found = self._chat(prompt)
        if not found.token_ids:
            raise Unreadable("the prompt is empty; write something")
        return found

    def most_new(self, prompt: PromptRead, wanted: int | None) -> int:
        """Most tokens of a response to `prompt`: what is wanted, or as many as are allowed."""
        left = self._sample - len(prompt.token_ids)
        if left < 1:
            raise Unreadable(f"the prompt has {len(prompt.token_ids)} tokens; at most {self._sample - 1} are read")
        if wanted is None:
            return min(self._response, left)
        if wanted > self._response:
            raise Unreadable(f"{wanted} new tokens are more than rollout.max_response_tokens={self._response}")
        if wanted > left:
            raise Unreadable(
                f"the prompt has {len(prompt.token_ids)} tokens and {wanted} more are wanted, but prompt and response "
                f"together may have {self._sample}"
            )
        return wanted

    def _text(self, prompt: str) -> PromptRead:
        if LONE_SURROGATE.search(prompt):
            raise Unreadable("the prompt has half of a surrogate pair, which is no character")
        return PromptRead(prompt, prompt_tokens(self._tokenizer, [prompt], chat=False)[0])

    def _tokens(self, token_ids: list[int]) -> PromptRead:
        size = len(self._tokenizer)
        outside = next((token for token in token_ids if not 0 <= token < size), None)
        if outside is not None:
            raise Unreadable(f"token id {outside} is outside the tokenizer's {size} (0 to {size - 1})")
        return PromptRead(str(self._tokenizer.decode(token_ids, skip_special_tokens=False)), token_ids)

    def _chat(self, messages: list[Any]) -> PromptRead:
        if self._tokenizer.chat_template is None:
            raise Unreadable("the policy's tokenizer has no chat template; give the prompt as text")
        try:
            plain = plain_messages(messages)
            text = chat_text(self._tokenizer, plain)
        except Exception as error:  # a template is a program: it raises what it likes
            raise Unreadable(f"the messages cannot be read: {error}") from None
        return PromptRead(text, prompt_tokens(self._tokenizer, [text], chat=True)[0], plain)
