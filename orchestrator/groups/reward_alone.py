"""A reward without a policy: texts are read with each reward model's own tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from orchestrator.config.serving import RewardServingRun
from orchestrator.groups.build import Builder, builder
from orchestrator.groups.recovery import Recovery, TellUser, untold
from orchestrator.groups.reward import Member, Reward, ToScore
from roles.batch import Sequences
from roles.config.rewards import EnsembleReward, MeanScore, ModelReward, OneReward
from roles.model_files.conversion import resolve_model
from roles.packing import right_padded
from roles.reward_model import RewardModel
from roles.text.answered_chat import answered_tokens, chat_with_answer, reads_to_the_end
from roles.text.messages import MESSAGES, TOOLS, plain_tools
from roles.text.prompt_tokens import prompt_tokens
from roles.text.tokenizer import load_tokenizer


@dataclass(frozen=True, slots=True)
class OwnTokens:
    """Texts → the tokens that a reward model reads."""

    tokenizer: PreTrainedTokenizerBase
    to_the_end: bool = False
    """As `reads_to_the_end` says of its folder."""

    def __call__(self, responses: ToScore) -> Sequences:
        """A row with a column `messages` goes through the chat template, with the tools in a column `tools`; otherwise
        prompt and response are tokenised apart, as in training. EOS, or the template's end of a turn, follows if the
        response ended itself. The messages of a conversation with an environment have the responses already."""
        chats = responses.columns.get(MESSAGES) or [None] * len(responses)
        token_ids, lengths = right_padded([self._row(responses, row, chat) for row, chat in enumerate(chats)])
        return Sequences(token_ids, lengths, torch.arange(token_ids.shape[1]) < lengths.unsqueeze(1))

    def _row(self, responses: ToScore, row: int, chat: Any) -> list[int]:
        response, finished = responses.responses[row], bool(responses.finished[row])
        if chat is not None:
            tools = plain_tools(responses.columns[TOOLS][row]) if TOOLS in responses.columns else ()
            text = chat_with_answer(self.tokenizer, chat, response, finished=finished, tools=tools)
            return answered_tokens(self.tokenizer, text, finished=finished, to_the_end=self.to_the_end)
        prompt = prompt_tokens(self.tokenizer, [responses.prompts[row]], chat=False)[0]
        said = prompt_tokens(self.tokenizer, [response], chat=True)[0]
        eos = self.tokenizer.eos_token_id
        ids = [*prompt, *said]
        return [*ids, eos] if (finished and ids[-1:] != [eos]) or not ids else ids


@contextmanager
def reward_alone(config: RewardServingRun, tell: TellUser = untold) -> Iterator[tuple[Reward, Recovery]]:
    """Context with the reward's groups, up, and what starts them again. `tell`: see `Builder`."""
    with builder(config, config.scorers, tell) as build:
        members = {role: _member(config, build, role, scorer) for role, scorer in config.scorers.items()}
        build.recovery.has_steps = False
        build.ready()
        how = config.reward.combine if isinstance(config.reward, EnsembleReward) else MeanScore()
        yield Reward(members, how), build.recovery


def _member(config: RewardServingRun, build: Builder[RewardServingRun], role: str, scorer: OneReward) -> Member:
    if not isinstance(scorer, ModelReward):
        return build.scorer(role, scorer)
    folder = resolve_model(scorer.model, Path(config.model_cache))
    tokenizer = load_tokenizer(folder, trust_remote_code=scorer.model.trust_remote_code)
    group = build.frozen_group(role, RewardModel, (build.engine_setup(role, folder, scorer), None))
    return Member(group, OwnTokens(tokenizer, reads_to_the_end(folder)))
