"""The samples of one call while they are generated: which responses the engine must generate next.

Prompts flow in. Turns flow out to the engine, its responses flow in, and at the end Rollouts flow out. A sample without
an environment has one turn. Imports neither vLLM nor Ray.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from roles.batch import Prompts, Rollouts
from roles.config.environment import FunctionEnvironment
from roles.errors import EnvironmentFailed, RolloutError
from roles.generation.environment_worker import Said
from roles.generation.environments import Environments
from roles.generation.turn_format import TurnFormat
from roles.seeds import stable_seed


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that cut a sample."""

    response_tokens: int
    """Most tokens of one response."""
    tokens: int
    """Most tokens of the whole sample, prompt included."""
    prompt_tokens: int
    """Most tokens of an environment's first messages; longer ones are an error."""
    environment: FunctionEnvironment | None
    """The environment's own limits; None if a sample is one response."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A response that the engine is to generate."""

    row: int
    token_ids: list[int]
    """All tokens before the response."""
    max_tokens: int
    seed: int | None
    """Seed of the sampling; None: take the most likely tokens."""


@dataclass(slots=True)
class _Sample:
    """One row: its tokens, and for each token whether the policy generated it, its log-probability and its reward."""

    prompt: str = ""
    token_ids: list[int] = field(default_factory=list)
    generated: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """Texts of the responses, one per turn."""
    said: list[Said] = field(default_factory=list)
    """The environment's answers; the first one opens the conversation."""
    counted: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The environment's metrics, summed over the turns."""
    cut: bool = False
    """Whether a limit cut the last response."""
    finished: bool = False

    def add(self, token_ids: Sequence[int], logprobs: Sequence[float] | None = None) -> None:
        """Append tokens: generated ones with their log-probabilities, or (None) tokens that were not generated."""
        self.token_ids += token_ids
        self.generated += [logprobs is not None] * len(token_ids)
        self.logprobs += [0.0] * len(token_ids) if logprobs is None else logprobs
        self.rewards += [0.0] * len(token_ids)

    @property
    def response(self) -> str:
        """Everything after the prompt, as text for readers."""
        lines = [self.texts[0]]
        for text, (messages, *_) in zip(self.texts[1:], self.said[1:], strict=False):
            lines += [f"[{message['role']}] {message['content']}" for message in messages or []] + [text]
        return lines[0] if len(lines) == 1 else "\n".join(line.strip("\n") for line in lines)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The whole conversation, as messages."""
        found = []
        for text, (messages, *_) in zip(self.texts, self.said, strict=False):
            found += [*(messages or []), {"role": "assistant", "content": text}]
        return found


class Conversations:
    """The samples of the rows of `prompts`."""

    def __init__(self, prompts: Prompts, limits: Limits, form: TurnFormat, environments: Environments | None) -> None:
        self._prompts, self._limits, self._form, self._environments = prompts, limits, form, environments
        self._samples = [_Sample() for _ in range(len(prompts))]
        self._ready: list[int] = []
        """Rows whose next response can be generated."""
        self._asked: dict[Future[Said], int] = {}
        """Pending answers of environments → rows."""
        self.open = set(range(len(prompts)))
        """Rows whose sample has not ended."""
        if environments is not None:
            environments.begin()
        for row in range(len(prompts)):
            if environments is None:
                self._begin(row, prompts.texts[row], prompts.token_ids[row])
            else:
                self._ask(row, environments)

    def turns(self, *, patient: bool) -> list[Turn]:
        """The responses that can be generated now. `patient`: if an environment has not answered yet, wait for one
        first.

        The wait ends: every answer has its deadline (`environment.timeout_s`).
        """
        if self._asked:
            answered, _ = wait(self._asked, None if patient else 0, FIRST_COMPLETED)
            for future in answered:
                self._hear(self._asked.pop(future), future.result())
        ready, self._ready = sorted(self._ready), []
        return [self._turn(row) for row in ready]

    def take(self, row: int, token_ids: list[int], logprobs: list[float], *, cut: bool) -> None:
        """Add a generated response to a row; `cut`: a limit cut it."""
        sample = self._samples[row]
        sample.add(token_ids, logprobs)
        sample.texts.append(self._form.text(token_ids))
        sample.cut = cut
        if self._environments is None:
            self._end(row, finished=not cut)
        else:
            self._ask(row, self._environments)

    def rollouts(self, rows: Sequence[int], version: int, pad_token_id: int) -> Rollouts:
        """The finished samples `rows`, as one batch."""
        samples, prompts = [self._samples[row] for row in rows], self._prompts.select(rows)
        lengths = [len(sample.token_ids) for sample in samples]
        shape = (len(lengths), max(lengths, default=0))
        # NumPy reads lists three times faster than torch does.
        token_ids = np.full(shape, pad_token_id, dtype=np.int64)
        response_mask = np.zeros(shape, dtype=np.bool_)
        logprobs, rewards = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
        for row, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
            token_ids[row, :length] = sample.token_ids
            response_mask[row, :length] = sample.generated
            logprobs[row, :length] = sample.logprobs
            rewards[row, :length] = sample.rewards
        said = {} if self._environments is None else {"messages": [sample.messages for sample in samples]}
        return Rollouts(
            token_ids=torch.from_numpy(token_ids),
            lengths=torch.tensor(lengths, dtype=torch.int64),
            response_mask=torch.from_numpy(response_mask),
            rollout_logprobs=torch.from_numpy(logprobs),
            turn_rewards=torch.from_numpy(rewards),
            finished=torch.tensor([sample.finished for sample in samples], dtype=torch.bool),
            versions=torch.full((len(lengths),), version, dtype=torch.int64),
            prompts=[sample.prompt for sample in samples],
            responses=[sample.response for sample in samples],
            columns={**prompts.columns, **said},
            counted=[{f"environment/{name}": total for name, total in sample.counted.items()} for sample in samples],
        )

    def _begin(self, row: int, text: str, token_ids: list[int]) -> None:
        limits = self._limits
        if limits.environment is not None:
            check_opening(len(token_ids), limits.prompt_tokens)
        elif len(token_ids) + limits.response_tokens > limits.tokens:
            raise RolloutError(
                f"a prompt of {len(token_ids)} tokens and rollout.max_response_tokens={limits.response_tokens} "
                f"are more than the {limits.tokens} that the engine takes; shorten the prompts"
            )
        if not token_ids:
            raise RolloutError(f"the prompt of row {row} has no tokens; give it at least a BOS")
        self._samples[row].prompt = text
        self._samples[row].add(token_ids)
        self._ready.append(row)

    def _turn(self, row: int) -> Turn:
        sample, seed = self._samples[row], self._prompts.seeds[row]
        number = len(sample.texts)
        return Turn(
            row,
            list(sample.token_ids),
            min(self._limits.response_tokens, self._limits.tokens - len(sample.token_ids)),
            stable_seed(seed, "turn", number) if number and seed is not None else seed,
        )

    def _ask(self, row: int, environments: Environments) -> None:
        columns = {name: column[row] for name, column in self._prompts.columns.items()}
        sample, seed = self._samples[row], self._prompts.environment_seeds[row]
        self._asked[environments.ask(row, columns, seed, sample.said, sample.texts)] = row

    def _hear(self, row: int, said: Said) -> None:
        """Add the environment's answer to a row: it asks for another response, or ends the sample."""
        sample, limits, (messages, reward, named) = self._samples[row], self._limits, said
        config = limits.environment
        assert config is not None
        sample.said.append(said)
        if len(sample.said) == 1:
            return self._begin(row, *self._form.opening(messages or []))
        sample.rewards[-1] += reward
        for name, number in named.items():
            sample.counted[name] += number
        cut = sample.cut and config.cut_turn == "end"
        if messages is None or cut or len(sample.texts) == config.max_turns:
            return self._end(row, finished=messages is None and not cut)
        following = self._form.following(messages, None if sample.cut else sample.token_ids[-1])
        if len(sample.token_ids) + len(following) >= limits.tokens:
            return self._end(row, finished=False)
        sample.add(following)
        self._ready.append(row)

    def _end(self, row: int, *, finished: bool) -> None:
        self._samples[row].finished = finished
        self.open.remove(row)


def check_opening(tokens: int, limit: int) -> None:
    """Raise EnvironmentFailed if an environment's first messages are too long."""
    if tokens > limit:
        raise EnvironmentFailed(
            f"an environment's first messages are {tokens} tokens, more than prompts.max_tokens={limit}; shorten them, "
            "or raise it"
        )
