"""The frozen reward model: one number for a whole response. Sequences or responses flow in, scores out.

The number is read at the last token of the row: the EOS that ended the response (rollouts are cut at the first one), or
the last token of a truncated one. Through the *text bridge* the reward model reads the text through its own tokenizer
and chat template instead of the policy's token ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from roles.batch import Responses, Sequences, TokenRows
from roles.errors import RewardError
from roles.models.networks import ValueModel
from roles.packing import in_rows, pack, right_padded
from roles.text.answered_chat import answered_chat, answered_tokens, reads_to_the_end
from roles.text.messages import MESSAGES, plain_tools
from roles.text.policy_text import PolicyText
from roles.text.prompt_tokens import prompt_tokens
from roles.text.tokenizer import load_tokenizer
from roles.zero.setup import ModelSetup
from roles.zero.sharded import ShardedModel


class Scorer(Protocol):
    """Whatever gives a number to a response: a model, a function, a service."""

    def score(self, rows: Any) -> Tensor:
        """float32 `[batch]`. `rows`: `Sequences` or `Responses`, whichever it reads."""


class RewardModel:
    """One rank of the reward model."""

    def __init__(self, setup: ModelSetup, policy: PolicyText | None = None) -> None:
        """With `policy` the text bridge is open; without it, the token ids are the reward model's own."""
        self._model = ShardedModel(setup, lambda: _load(setup))
        self._bridge = TextBridge(setup, policy) if policy else None
        folder = self._model.module.model.config
        self._longest = folder.max_position_embeddings if hasattr(folder, "max_position_embeddings") else None

    def score(self, sequences: Sequences | Responses) -> Tensor:
        """float32 `[batch]`: the centred number at the last token of each row. The text bridge reads `Responses`."""
        rows = self._bridge.encode(cast(Responses, sequences)) if self._bridge else _token_rows(sequences)
        lengths = [len(row) for row in rows]
        if self._longest is not None and rows and max(lengths) > self._longest:
            raise RewardError(
                f"a response makes {max(lengths)} tokens with its prompt, but the reward model in "
                f"{self._model.setup.model_path} reads {self._longest}; shorten prompts.max_tokens or "
                "rollout.max_response_tokens"
            )
        found = [(part, self._read([rows[row] for row in part] or [[0, 0]])) for part in self._model.passes(lengths)]
        return in_rows(found, torch.zeros(len(rows)))

    @torch.no_grad()
    def _read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """float32 `[rows]`: the head's number at the last token of each, on the model's device."""
        padded, lengths = right_padded(rows)
        packed = pack(padded, lengths).to(self._model.device)
        numbers: Tensor = self._model(packed=packed, positions=packed.starts[1:].long() - 1)
        return numbers.float()


class TextBridge:
    """The policy's tokens → text → the reward model's tokens."""

    def __init__(self, setup: ModelSetup, policy: PolicyText) -> None:
        self._tokenizer: Any = load_tokenizer(setup.model_path, trust_remote_code=setup.trust_remote_code)
        self._policy: Any = policy.tokenizer()
        self._tools = policy.tools
        self._to_the_end = reads_to_the_end(setup.model_path)

    def encode(self, answered: Responses) -> list[list[int]]:
        """Token ids of each row, for the reward model.

        A row with a `messages` column goes through the reward model's chat template, with its tools. Otherwise prompt
        and response are decoded (without special tokens) and tokenized as one text. EOS, or the template's end of a
        turn, follows if the response ended itself.
        """
        chats = answered.columns[MESSAGES] if MESSAGES in answered.columns else [None] * len(answered)
        return [self._encode(answered, row, chat) for row, chat in enumerate(chats)]

    def _encode(self, answered: Responses, row: int, chat: Any) -> list[int]:
        finished = bool(answered.finished[row])
        if chat is not None:
            tools = plain_tools(answered.columns[self._tools][row]) if self._tools is not None else ()
            text = answered_chat(self._tokenizer, chat, answered.responses[row], finished=finished, tools=tools)
            return answered_tokens(self._tokenizer, text, finished=finished, to_the_end=self._to_the_end)
        tokens = answered.token_ids[row, : int(answered.lengths[row])]
        text = self._policy.decode(tokens, skip_special_tokens=True)
        (ids,) = prompt_tokens(self._tokenizer, [text], chat=False)
        eos = self._tokenizer.eos_token_id
        return [*ids, eos] if finished and ids[-1:] != [eos] else ids or [eos]


def _token_rows(sequences: TokenRows) -> list[list[int]]:
    rows = zip(sequences.token_ids.tolist(), sequences.lengths.tolist(), strict=True)
    return [row[:length] for row, length in rows]


def _load(setup: ModelSetup) -> ValueModel:
    return ValueModel.load(setup.model_path, dtype=setup.torch_dtype, trust_remote_code=setup.trust_remote_code)
