"""A prompt and a response → the tokens of both, and which of them are trained on. The only place that decides where a
response begins and how it ends.

- **Texts** are joined as they are; the response ends with EOS, once. Without a prompt, BOS is not trained on either.
- **Chats** are written by the chat template; the turns of the assistant in the response are trained on, with the mark
  that ends each of them. EOS is added only if the template ends the last turn with no token of that kind.

Prompt and response are tokenised apart, as when the policy generates; the prompt as in `roles.text.prompt_tokens`, what
follows it as in `roles.text.piece_tokens`.

    "what is", " red"                         →  <bos>what is| red<eos>|
    [user "hi"], [assistant "yes"]            →  <bos><user>hi<assistant>|yes<eos>|
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from roles.text.loss_spans import response_spans
from roles.text.messages import Messages, Tools
from roles.text.piece_tokens import piece_tokens
from roles.text.prompt_tokens import TEMPLATE_S, begins_text, check_roles, prompt_tokens
from roles.text.template_errors import refused_by_template
from roles.text.time_limit import time_limit

Text = str | Messages
"""A text, or a chat of plain messages."""


class Piece(NamedTuple):
    """A part of a sample that is trained on as a whole, or not at all."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class RenderedSample:
    """A sample before it is tokenised.

    Example: `RenderedSample([Piece("what is", False), Piece(" red", True)], chat=False)`
    """

    pieces: list[Piece]
    chat: bool
    """Whether the chat template has written it, its beginning included."""


@dataclass(frozen=True, slots=True)
class TokenSample:
    """A sample as a model reads it.

    Example (`what is| red<eos>|`):
        token_ids = [7, 8, 9, 2]
        trained   = [False, False, True, True]
    """

    token_ids: list[int]
    trained: list[bool]
    """Which tokens are trained on."""

    def __len__(self) -> int:
        return len(self.token_ids)

    def first(self, tokens: int) -> TokenSample:
        """Its first tokens."""
        return TokenSample(self.token_ids[:tokens], self.trained[:tokens])


def render_sample(
    tokenizer: PreTrainedTokenizerBase, prompt: Text, response: Text, tools: Tools = ()
) -> RenderedSample:
    """Two texts, or chats; a text beside a chat is one message of it. ValueError if it cannot be rendered. `tools`: of
    a chat."""
    if isinstance(prompt, str) and isinstance(response, str):
        return RenderedSample([Piece(prompt, False), Piece(response, True)], chat=False)
    asked, said = as_messages(prompt, "user"), as_messages(response, "assistant")
    if tokenizer.chat_template is None:
        raise ValueError(
            "messages, but the tokenizer has no chat template; add chat_template.jinja to the model folder, or give "
            "prompt and response as texts"
        )
    while said and said[-1]["role"] != "assistant":
        said = said[:-1]  # nothing is learned there
    if not said:
        raise ValueError("no turn of the assistant in the response, so there is nothing to learn")
    check_roles(tokenizer, [*asked, *said])
    try:
        with time_limit(TEMPLATE_S):
            text, spans = response_spans(tokenizer, asked, said, tools)
    except ValueError:
        raise
    except Exception as error:  # a template is a program: it raises what it likes
        raise refused_by_template(error, "messages that do") from error
    pieces, place = [], 0
    for start, end in spans:
        pieces += [Piece(text[place:start], False), Piece(text[start:end], True)]
        place = end
    if not pieces:
        raise ValueError("a response without a part that the chat template marks for training")
    rest = text[place:].rstrip()
    return RenderedSample([*pieces, *([Piece(rest, False)] if rest else [])], chat=True)


def as_messages(text: Text, role: str) -> Messages:
    """A text as the one message of `role`; a chat as it is."""
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def sample_tokens(tokenizer: PreTrainedTokenizerBase, samples: Sequence[RenderedSample]) -> list[TokenSample]:
    """Token ids of each sample, and which of them are trained on."""
    found = piece_tokens(tokenizer, [[piece.text for piece in sample.pieces] for sample in samples])
    begun = iter(prompt_tokens(tokenizer, [s.pieces[0].text for s in samples if not s.chat], chat=False))
    return [_joined(tokenizer, sample, ids, begun) for sample, ids in zip(samples, found, strict=True)]


def _joined(
    tokenizer: PreTrainedTokenizerBase, sample: RenderedSample, ids: list[list[int]], begun: Iterator[list[int]]
) -> TokenSample:
    if not sample.chat:
        ids[0] = next(begun)
        if not sample.pieces[0].text and ids[0] and begins_text(ids[1], ids[0], tokenizer):
            end = ids[1].index(ids[0][-1]) + 1
            ids[:2] = [ids[1][:end], ids[1][end:]]  # BOS once, where a prompt would stand
    token_ids = [token for part in ids for token in part]
    trained = [piece.trained for piece, part in zip(sample.pieces, ids, strict=True) for _ in part]
    ends = {tokenizer.eos_token_id, *(tokenizer.added_tokens_decoder if sample.chat else ())}
    if token_ids and token_ids[-1] in ends and ids[-1]:
        return TokenSample(token_ids, trained)
    return TokenSample([*token_ids, tokenizer.eos_token_id], [*trained, sample.pieces[-1].trained])
