"""The types that flow through one PPO step: Prompts → Rollouts → Scored; what comes of them is `roles.shares`'.

Token tensors are `[batch, time]`: a prompt and its response in one row, **right-padded**;
`lengths` counts the tokens that are not padding. `response_mask` is True where the policy generated the token at
that position (it may have gaps in a multi-turn sample, and is False on prompts and padding). Every per-token number
(`*_logprobs`, `values`, `advantages`, …) is float32, belongs to the token at the same position, and is 0.0 where the
mask is False. `values[b, t]` is V of the state *before* token t was chosen.

The driver makes and splits these; the roles read them. Nothing here knows Ray or a model. The example in each type's
docstring is the same three rows: prompts of 2, 1 and 3 tokens, responses of 2, 4 and 1; token 2 is EOS, token 0 the
padding, and the length limit has cut the last response.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from roles.rows import Batch, check_shape, check_texts, check_tokens


class TokenRows(Protocol):
    """What a model reads of any batch."""

    @property
    def token_ids(self) -> Tensor:
        """int64 `[batch, time]`, right-padded."""

    @property
    def lengths(self) -> Tensor:
        """int64 `[batch]`."""

    @property
    def response_mask(self) -> Tensor:
        """bool `[batch, time]`."""


@dataclass(frozen=True, slots=True)
class Prompts(Batch):
    """What the rollout engines are asked to answer. One row a sample (four responses to a prompt are four rows).

    Example:
        token_ids         = [[5, 6], [5], [5, 6, 4]]
        texts             = ["a b", "a", "a b c"]
        columns           = {"answer": ["d", "e", "f"]}
        seeds             = [11, 12, 13]
        environment_seeds = [21, 22, 23]
    """

    token_ids: list[list[int]]
    """Prompt tokens, without padding; none where an environment says the first word."""
    texts: list[str]
    """The prompt as text, after the chat template; empty where an environment says the first word."""
    columns: dict[str, list[Any]]
    """The data set's other columns, one list of `batch` values each; for the environment and the reward function."""
    seeds: list[int | None]
    """Sampling seed of each row: a function of the run's seed, the step and the row: a resumed run repeats it. None:
    the most likely token is taken every time."""
    environment_seeds: list[int]
    """Seed of each row's environment: the same for all responses to a prompt, so that they can be compared."""

    def greedy(self, responses_per_prompt: int) -> Prompts:
        """One row for each prompt, to be answered with the most likely tokens; its rows here are neighbours."""
        once = self.select(range(0, len(self), responses_per_prompt))
        return replace(once, seeds=[None] * len(once))

    def __post_init__(self) -> None:
        size = len(self.token_ids)
        lengths = {len(self.texts), len(self.seeds), len(self.environment_seeds), *map(len, self.columns.values())}
        if lengths != {size}:
            raise ValueError(f"Prompts: token_ids has {size} rows, but another field has a different number")


@dataclass(frozen=True, slots=True)
class Rollouts(Batch):
    """Prompts with their generated responses. Made by `roles.rollout`.

    Example:
        token_ids        = [[5, 6, 7, 2, 0], [5, 8, 9, 8, 2], [5, 6, 4, 9, 0]]
        lengths          = [4, 5, 4]
        response_mask    = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]]
        rollout_logprobs = [[0, 0, -0.5, -0.1, 0], [0, -1.0, -0.2, -0.9, -0.1], [0, 0, 0, -2.0, 0]]
        turn_rewards     = [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]
        finished         = [1, 1, 0]
        versions         = [3, 3, 3]
        prompts          = ["a b", "a", "a b c"]
        responses        = ["d", "e f e", "f"]
        columns          = {"answer": ["d", "e", "f"]}
        counted          = [{}, {}, {}]
    """

    token_ids: Tensor
    """int64 `[batch, time]`, right-padded (with anything: `lengths` says what is read). A response ends at its first
    EOS, which is kept; a row ends with a generated token."""
    lengths: Tensor
    """int64 `[batch]`: prompt + response tokens, those of the environment between responses included."""
    response_mask: Tensor
    """bool `[batch, time]`: True on generated tokens, the EOS included; False on what the environment said."""
    rollout_logprobs: Tensor
    """float32 `[batch, time]`: what vLLM reported for the token at that position (after temperature)."""
    turn_rewards: Tensor
    """float32 `[batch, time]`: what the environment paid for a turn, on the last token that was generated in it; 0
    elsewhere, and without an environment."""
    finished: Tensor
    """bool `[batch]`: True if the response (with an environment: the conversation) ended itself, False if a limit cut
    it (*truncated*)."""
    versions: Tensor
    """int64 `[batch]`: the version of the weights that made the sample."""
    prompts: list[str]
    responses: list[str]
    """Text of the response, special tokens left out; of a conversation everything after its first messages."""
    columns: dict[str, list[Any]]
    """The data set's; of a conversation `messages` holds all that was said."""
    counted: list[dict[str, float]]
    """What the environment has counted beside its rewards, summed over the turns: `environment/NAME` → number."""

    @property
    def generated(self) -> Tensor:
        """int64 `[batch]`: tokens that the policy generated."""
        return self.response_mask.sum(1)

    def __post_init__(self) -> None:
        check_tokens(self)
        for name in ("rollout_logprobs", "turn_rewards"):
            check_shape(self, name, self.token_ids.shape, torch.float32)
        check_shape(self, "finished", self.lengths.shape, torch.bool)
        check_shape(self, "versions", self.lengths.shape, torch.int64)
        check_texts(self)


@dataclass(frozen=True, slots=True)
class Sequences(Batch):
    """The part of rollouts that a model reads to give each token or response a number.

    Example:
        token_ids     = [[5, 6, 7, 2, 0], [5, 8, 9, 8, 2], [5, 6, 4, 9, 0]]
        lengths       = [4, 5, 4]
        response_mask = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]]
    """

    token_ids: Tensor
    """int64 `[batch, time]`, right-padded."""
    lengths: Tensor
    """int64 `[batch]`."""
    response_mask: Tensor
    """bool `[batch, time]`: True on generated tokens."""

    def __post_init__(self) -> None:
        check_tokens(self)

    @classmethod
    def of(cls, batch: TokenRows) -> Self:
        """The same rows without all other fields."""
        return cls(batch.token_ids, batch.lengths, batch.response_mask)


@dataclass(frozen=True, slots=True)
class Responses(Batch):
    """What a reward reads that looks at texts (a function, a service, the text bridge): a part of rollouts, or what no
    run has sampled.

    Example:
        token_ids     = [[5, 6, 7, 2, 0], [5, 8, 9, 8, 2], [5, 6, 4, 9, 0]]
        lengths       = [4, 5, 4]
        response_mask = [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 1, 0]]
        finished      = [1, 1, 0]
        prompts       = ["a b", "a", "a b c"]
        responses     = ["d", "e f e", "f"]
        columns       = {"answer": ["d", "e", "f"]}
    """

    token_ids: Tensor
    """int64 `[batch, time]`, right-padded."""
    lengths: Tensor
    """int64 `[batch]`."""
    response_mask: Tensor
    """bool `[batch, time]`: True on generated tokens."""
    finished: Tensor
    """bool `[batch]`: True if the response ended itself."""
    prompts: list[str]
    responses: list[str]
    columns: dict[str, list[Any]]
    """The data set's, as far as they are asked for, and a conversation's `messages`."""

    def __post_init__(self) -> None:
        check_tokens(self)
        check_shape(self, "finished", self.lengths.shape, torch.bool)
        check_texts(self)

    @classmethod
    def of(cls, rollouts: Rollouts | Responses, columns: Collection[str] | None = None) -> Self:
        """The same rows without all other fields; of the data set's columns only `columns` (None: all)."""
        own = {f.name: getattr(rollouts, f.name) for f in fields(cls)}
        asked = rollouts.columns if columns is None else columns
        return cls(**own | {"columns": {name: rows for name, rows in rollouts.columns.items() if name in asked}})


@dataclass(frozen=True, slots=True)
class Scored(Batch):
    """Rollouts with the answers of the scoring passes. Made by the driver from the roles' answers.

    Example (`rollouts`: those of `Rollouts`):
        old_logprobs       = [[0, 0, -0.5, -0.1, 0], [0, -1.0, -0.2, -0.9, -0.1], [0, 0, 0, -2.0, 0]]
        reference_logprobs = [[0, 0, -0.7, -0.1, 0], [0, -1.0, -0.2, -0.9, -0.1], [0, 0, 0, -2.0, 0]]
        values             = [[0, 0, 0.5, 0.5, 0], [0, 0.1, 0.2, 0.3, 0.4], [0, 0, 0, -0.5, 0]]
        scores             = [1.0, 0.0, -1.0]
        disagreement       = [0.0, 0.0, 0.0]
        named              = [{"reward/polite": 1.0}, {"reward/polite": 0.0}, {"reward/polite": 0.5}]
    """

    rollouts: Rollouts
    old_logprobs: Tensor
    """float32 `[batch, time]`: the actor's, before the update, at the rollout's temperature."""
    reference_logprobs: Tensor
    """float32 `[batch, time]`: the reference's, at the same temperature."""
    values: Tensor
    """float32 `[batch, time]`: the critic's V before each generated token; 0 in a run without a critic."""
    scores: Tensor
    """float32 `[batch]`: the reward model's number for the whole response; of an ensemble, the combined one;
    and the sum of its turns' rewards."""
    disagreement: Tensor
    """float32 `[batch]`: standard deviation of the scores between the members of an ensemble; 0 without one."""
    named: list[dict[str, float]]
    """What the reward says beside the score, and the scores of an ensemble's members: `reward/NAME`, `score/MEMBER` →
    number."""

    def __post_init__(self) -> None:
        for name in ("old_logprobs", "reference_logprobs", "values"):
            check_shape(self, name, self.rollouts.token_ids.shape, torch.float32)
        for name in ("scores", "disagreement"):
            check_shape(self, name, self.rollouts.lengths.shape, torch.float32)


@dataclass(frozen=True, slots=True)
class Preferences(Batch):
    """Responses that were compared: what a reward model is trained on. Made by `orchestrator.stages.sampled_pairs`.

    Within a group (the responses to one prompt), every pair with different ranks is one comparison.

    Example (one comparison: row 1 is preferred to row 0):
        token_ids = [[5, 6, 7, 2, 0], [5, 6, 9, 8, 2], [5, 8, 2, 0, 0]]
        lengths   = [4, 5, 3]
        groups    = [0, 0, 1]
        ranks     = [0.0, 1.0, 0.0]
        certainty = [0.9, 0.9, 1.0]
    """

    token_ids: Tensor
    """int64 `[batch, time]`: prompt and response, right-padded."""
    lengths: Tensor
    """int64 `[batch]`."""
    groups: Tensor
    """int64 `[batch]`: which rows answer the same prompt."""
    ranks: Tensor
    """float32 `[batch]`: the higher is preferred; only the order within a group matters."""
    certainty: Tensor
    """float32 `[batch]`: probability that the row is better than one of its group that ranks lower; 1: it is known."""

    def __post_init__(self) -> None:
        check_shape(self, "token_ids", self.token_ids.shape, torch.int64)
        for name in ("lengths", "groups"):
            check_shape(self, name, self.token_ids.shape[:1], torch.int64)
        for name in ("ranks", "certainty"):
            check_shape(self, name, self.token_ids.shape[:1], torch.float32)

    @property
    def summary(self) -> str:
        """For the user: how many there are, and how long they are."""
        low, high = int(self.lengths.min()), int(self.lengths.max())
        return f"{len(self)} responses of {f'{low} to ' if low < high else ''}{high} tokens to compare"

    def comparisons(self) -> Tensor:
        """int64 `[comparisons, 2]`: (row of the preferred, row of the other)."""
        found = [torch.empty((0, 2), dtype=torch.int64)]
        sizes = self.groups.unique(return_counts=True)[1].tolist()
        for rows in self.groups.argsort(stable=True).split(sizes):  # all pairs of rows at once would be N x N
            ranks = self.ranks[rows]
            found.append(rows[(ranks.unsqueeze(1) > ranks.unsqueeze(0)).nonzero()])
        pairs = torch.cat(found)
        return pairs[(pairs[:, 0] * len(self) + pairs[:, 1]).argsort()]
