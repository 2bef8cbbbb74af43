"""The types that flow through one PPO step: Prompts → Rollouts → Scored → Experience.

Token tensors are `[batch, time]`: a prompt and its response in one row, **right-padded**;
`lengths` counts the tokens that are not padding. `response_mask` is True where the policy generated the token at
that position (it may have gaps in a multi-turn sample, and is False on prompts and padding). Every per-token number
(`*_logprobs`, `values`, `advantages`, …) is float32, belongs to the token at the same position, and is 0.0 where the
mask is False. `values[b, t]` is V of the state *before* token t was chosen.

The driver makes and splits these; the roles read them. Nothing here knows Ray or a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save_file
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """What all stages share: rows that can be selected, split and concatenated."""

    def __len__(self) -> int:
        first = getattr(self, fields(self)[0].name)
        return len(first)

    def select(self, rows: Sequence[int]) -> Self:
        """The rows `rows`, in that order; token tensors are cut to the longest row that is left."""
        index = torch.as_tensor(rows, dtype=torch.long)
        width = _longest(self, index)
        return type(self)(**{f.name: _select(getattr(self, f.name), rows, index, width) for f in fields(self)})

    def split(self, parts: Iterable[Sequence[int]]) -> list[Self]:
        """One batch for each list of row numbers."""
        return [self.select(rows) for rows in parts]

    @classmethod
    def concatenate(cls, batches: Sequence[Self], pad_token_id: int = 0) -> Self:
        """The rows of all batches in order; shorter rows are padded on the right (`token_ids` with `pad_token_id`)."""
        if not batches:
            raise ValueError(f"cannot concatenate zero batches of {cls.__name__}")
        joined = {}
        for f in fields(cls):
            parts = [getattr(b, f.name) for b in batches]
            joined[f.name] = _join(parts, pad_token_id if f.name == "token_ids" else 0)
        return cls(**joined)


@dataclass(frozen=True, slots=True)
class Prompts(Batch):
    """What the rollout engines are asked to answer. One row a sample (four responses to a prompt are four rows)."""

    token_ids: list[list[int]]
    """Prompt tokens, without padding; none where an environment says the first word."""
    texts: list[str]
    """The prompt as text, after the chat template; empty where an environment says the first word."""
    columns: dict[str, list[Any]]
    """The data set's other columns, one list of `batch` values each; they reach the reward function."""
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
    """Prompts with their generated responses. Made by `roles.rollout`."""

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

    def __post_init__(self) -> None:
        _check_tokens(self)
        for name in ("rollout_logprobs", "turn_rewards"):
            _check_shape(self, name, self.token_ids.shape, torch.float32)
        _check_samples(self)


@dataclass(frozen=True, slots=True)
class Scored(Batch):
    """Rollouts with the answers of the four scoring passes. Made by the driver from the roles' answers."""

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    rollout_logprobs: Tensor
    turn_rewards: Tensor
    finished: Tensor
    versions: Tensor
    prompts: list[str]
    responses: list[str]
    columns: dict[str, list[Any]]
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

    def __post_init__(self) -> None:
        _check_tokens(self)
        for name in ("rollout_logprobs", "turn_rewards", "old_logprobs", "reference_logprobs", "values"):
            _check_shape(self, name, self.token_ids.shape, torch.float32)
        _check_samples(self)
        _check_shape(self, "scores", self.lengths.shape, torch.float32)
        _check_shape(self, "disagreement", self.lengths.shape, torch.float32)


@dataclass(frozen=True, slots=True)
class Experience(Batch):
    """What actor and critic are trained on. Made by `orchestrator.ppo.experience` on the driver."""

    token_ids: Tensor
    lengths: Tensor
    response_mask: Tensor
    """bool `[batch, time]`: the tokens that are trained on (a masked truncated sample has none)."""
    rows: Tensor
    """int64 `[batch]`: which row of the PPO step's batch each is."""
    old_logprobs: Tensor
    rollout_logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    """float32 `[batch, time]`, whitened over the batch if the configuration says so."""
    returns: Tensor
    """float32 `[batch, time]`: advantage before whitening + value; the critic's target."""

    def __post_init__(self) -> None:
        _check_tokens(self)
        _check_shape(self, "rows", self.lengths.shape, torch.int64)
        for name in ("old_logprobs", "rollout_logprobs", "reference_logprobs", "values", "advantages", "returns"):
            _check_shape(self, name, self.token_ids.shape, torch.float32)


@dataclass(frozen=True, slots=True)
class Preferences(Batch):
    """Responses that were compared: what a reward model is trained on. Made by `orchestrator.stages.sampled_pairs`.

    Within a group (the responses to one prompt), every pair with different ranks is one comparison.
    """

    token_ids: Tensor
    """int64 `[batch, time]`: prompt and response, right-padded."""
    lengths: Tensor
    """int64 `[batch]`."""
    groups: Tensor
    """int64 `[batch]`: which rows answer the same prompt."""
    ranks: Tensor
    """float32 `[batch]`: the higher is preferred; only the order within a group matters."""

    def __post_init__(self) -> None:
        _check_shape(self, "token_ids", self.token_ids.shape, torch.int64)
        for name, dtype in (("lengths", torch.int64), ("groups", torch.int64), ("ranks", torch.float32)):
            _check_shape(self, name, self.token_ids.shape[:1], dtype)

    @property
    def summary(self) -> str:
        """For the user: how many there are, and how long they are."""
        return f"{len(self)} responses of {int(self.lengths.min())} to {int(self.lengths.max())} tokens to compare"

    def comparisons(self) -> Tensor:
        """int64 `[comparisons, 2]`: (row of the preferred, row of the other)."""
        same = self.groups.unsqueeze(1) == self.groups.unsqueeze(0)
        return (same & (self.ranks.unsqueeze(1) > self.ranks.unsqueeze(0))).nonzero()


def save_batch(batch: Batch, file: Path) -> None:
    """Tensors in `file` (safetensors), everything else beside it as JSON."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}, file)
    texts = {name: value for name, value in values.items() if not isinstance(value, Tensor)}
    file.with_suffix(".json").write_text(json.dumps(texts, ensure_ascii=False, indent=1, default=str) + "\n")


def _check_tokens(batch: Any) -> None:
    shape = batch.token_ids.shape
    if len(shape) != 2:
        raise ValueError(f"{type(batch).__name__}.token_ids must be [batch, time], got shape {tuple(shape)}")
    _check_shape(batch, "token_ids", shape, torch.int64)
    _check_shape(batch, "lengths", shape[:1], torch.int64)
    _check_shape(batch, "response_mask", shape, torch.bool)
    if shape[0] and int(batch.lengths.max()) > shape[1]:
        raise ValueError(
            f"{type(batch).__name__}.lengths has {int(batch.lengths.max())}, more than the {shape[1]} columns"
        )
    padding = torch.arange(shape[1], device=batch.lengths.device) >= batch.lengths.unsqueeze(1)
    if bool((batch.response_mask & padding).any()):
        raise ValueError(f"{type(batch).__name__}.response_mask is True on padding: it reaches beyond `lengths`")


def _check_samples(batch: Any) -> None:
    """What comes with each generated sample: one entry a row."""
    _check_shape(batch, "finished", batch.lengths.shape, torch.bool)
    _check_shape(batch, "versions", batch.lengths.shape, torch.int64)
    columns = {f"columns[{name!r}]": column for name, column in batch.columns.items()}
    for name, rows in {"prompts": batch.prompts, "responses": batch.responses, **columns}.items():
        if len(rows) != len(batch.lengths):
            raise ValueError(f"{type(batch).__name__}.{name} has {len(rows)} entries for {len(batch.lengths)} rows")


def _check_shape(batch: Any, name: str, shape: Sequence[int], dtype: torch.dtype) -> None:
    tensor = getattr(batch, name)
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise ValueError(
            f"{type(batch).__name__}.{name} must be {dtype} {tuple(shape)}, got {tensor.dtype} {tuple(tensor.shape)}"
        )


def _longest(batch: Any, index: Tensor) -> int | None:
    """Columns that the rows `index` need; None where there is nothing to cut."""
    if not isinstance(batch, Prompts) and len(index):
        return int(batch.lengths[index].max())
    return None


def _select(value: Any, rows: Sequence[int], index: Tensor, width: int | None) -> Any:
    """Cut before the copy: a cut view would carry its whole storage along when it is pickled."""
    if isinstance(value, Tensor):
        return value[:, :width][index] if value.dim() == 2 else value[index]
    if isinstance(value, dict):
        return {key: [column[row] for row in rows] for key, column in value.items()}
    return [value[row] for row in rows]


def _join(parts: list[Any], fill: int) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        if first.dim() == 1:
            return torch.cat(parts)
        width = max(p.shape[1] for p in parts)
        return torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[1]), value=fill) for p in parts])
    if isinstance(first, dict):
        if any(part.keys() != first.keys() for part in parts):
            raise ValueError(f"batches with different columns cannot be joined: {[sorted(part) for part in parts]}")
        return {key: [value for part in parts for value in part[key]] for key in first}
    return [value for part in parts for value in part]
