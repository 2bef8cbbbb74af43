"""A data set of comparisons or labelled responses → what a policy learns preferences from, and some held out."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import permutations

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from orchestrator.config.dpo import DpoConfig
from orchestrator.data.epochs import schedule_of
from orchestrator.data.record_values import PROBABILITY
from orchestrator.data.samples import Samples
from orchestrator.data.training_parts import padded, read_parts
from orchestrator.errors import ConfigError
from roles.batch import Sequences
from roles.config.preference_losses import SOFT_LABELS, KtoLoss
from roles.seeds import stable_seed
from roles.shares import LabelledResponses, PreferenceBatch, PreferencePairs, ReferencedResponses
from roles.text.sample_tokens import TokenSample


@dataclass(frozen=True, slots=True)
class PreferenceSamples:
    """Pairs of responses, or labelled responses.

    Example (three responses to a prompt, the first of which is better than the others):
        responses = 3 rows
        rows      = [[0, 1], [0, 2]]
        desirable = None
    """

    responses: Sequences
    rows: Tensor
    """int64 `[samples, 2]`, rows of `responses`: of a pair the chosen and the rejected response; of a labelled response
    itself, and another one's response after its prompt, for KTO's estimate of the KL."""
    desirable: Tensor | None
    """bool `[samples]`: the labels; None for pairs."""
    certainty: Tensor
    """float32 `[samples]`: probability that the order of a pair is right, or 1."""

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, samples: Sequence[int], reference: Tensor) -> PreferenceBatch:
        """Some samples; `reference`: float32 `[responses]`, the reference's log-probability of each response."""
        numbers = torch.as_tensor(samples, dtype=torch.long)
        first, second = (self._referenced(rows, reference) for rows in self.rows[numbers].unbind(1))
        if self.desirable is None:
            return PreferencePairs(first, second, numbers, self.certainty[numbers])
        return LabelledResponses(first, second, self.desirable[numbers], numbers)

    def digest(self) -> str:
        """A hash of all tokens, and of what is said of them."""
        tensors = {f.name: getattr(self.responses, f.name).contiguous() for f in fields(self.responses)}
        said = {"rows": self.rows} | ({} if self.desirable is None else {"desirable": self.desirable})
        said |= {"certainty": self.certainty} if bool((self.certainty < 1).any()) else {}
        return hashlib.sha256(save(tensors | {name: tensor.contiguous() for name, tensor in said.items()})).hexdigest()

    def _referenced(self, rows: Tensor, reference: Tensor) -> ReferencedResponses:
        part = self.responses.select(rows.tolist())
        return ReferencedResponses(part.token_ids, part.lengths, part.response_mask, reference[rows])


@dataclass(frozen=True, slots=True)
class DpoData:
    """What a policy learns preferences from, and what it is tested on."""

    training: PreferenceSamples
    heldout: PreferenceSamples | None
    statistics: tuple[str, ...]
    """For the user: what was read, in lines."""
    example: str
    """For the user: one row as it was given and as the model reads it."""
    ends: dict[int, str] = field(default_factory=dict)
    """See `Samples.ends`."""

    @property
    def summary(self) -> str:
        """For the user: what was read, and how much of it is held out."""
        kind = "pairs" if self.training.desirable is None else "labelled responses"
        heldout = 0 if self.heldout is None else len(self.heldout)
        return "\n".join([*self.statistics, f"{len(self.training)} {kind} to train on, {heldout} held out"])

    def schedule(self, config: DpoConfig, seed: int) -> list[list[int]]:
        """Samples of each optimizer step: a fresh permutation in each epoch."""
        return schedule_of(range(len(self.training)), config.samples_per_step, config.epochs, (seed, "dpo"))


def read_preferences(config: DpoConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> DpoData:
    """The samples of `dpo.data` and `dpo.heldout`, none longer than `max_tokens`: labels for the loss `kto`, else
    pairs."""
    labelled = isinstance(config.loss, KtoLoss)
    parts = read_parts(config, "labels" if labelled else "preferences", tokenizer, seed)
    lines = list(parts.statistics)

    def made(samples: Samples, name: str) -> PreferenceSamples:
        pad = tokenizer.pad_token_id
        return _labels(samples, config, name, pad, seed) if labelled else _pairs(samples, config, name, pad)

    training = made(parts.training, "data")
    heldout = made(parts.heldout, "heldout") if parts.heldout else None
    if isinstance(config.loss, KtoLoss) and training.desirable is not None:
        lines += _balance(training.desirable, config.loss)
    return DpoData(training, heldout, tuple(lines), parts.training.example, parts.training.ends(tokenizer))


def _pairs(samples: Samples, config: DpoConfig, name: str, pad: int) -> PreferenceSamples:
    """Every two responses of a group that differ, in value and in tokens."""
    if config.loss.type not in SOFT_LABELS and min(samples.certainty) < 1:
        raise ConfigError(
            f"dpo.{name} has soft labels (column {PROBABILITY}), which dpo.loss.type={config.loss.type} does not read; "
            f"use {', '.join(SOFT_LABELS)}, or leave the column out"
        )
    responses: list[TokenSample] = []
    rows, certainty = list[list[int]](), list[float]()
    for group, values, certain in zip(samples.groups, samples.values, samples.certainty, strict=True):
        first = len(responses)
        rows += [
            [first + better, first + worse]
            for better, worse in permutations(range(len(group)), 2)
            if values[better] > values[worse] and group[better] != group[worse]
        ]
        certainty += [certain] * (len(rows) - len(certainty))
        responses += group
    return PreferenceSamples(padded(responses, pad), torch.tensor(rows), None, torch.tensor(certainty))


def _labels(samples: Samples, config: DpoConfig, name: str, pad: int, seed: int) -> PreferenceSamples:
    """Each response, and another one's after its prompt: the next one's in an order that depends on `seed` alone."""
    responses, count = [group[0] for group in samples.groups], len(samples)
    desirable = torch.tensor([value > 0 for (value,) in samples.values])
    if name == "data" and len(desirable.unique()) < 2:
        raise ConfigError(
            f"dpo.data has labels {str(bool(desirable[0])).lower()} only; loss kto learns from desirable and "
            "undesirable responses: add rows with the other label"
        )
    if count < 2:
        raise ConfigError(f"dpo: 1 labelled response in {name}; loss kto needs 2 or more to estimate the KL from")
    order = list(range(count))
    random.Random(stable_seed(seed, "mismatched")).shuffle(order)
    other = {row: order[place - 1] for place, row in enumerate(order)}
    mismatched = [_after(responses[row], responses[other[row]], config.max_tokens) for row in range(count)]
    numbers = torch.arange(count)
    sequences = padded([*responses, *mismatched], pad)
    return PreferenceSamples(sequences, torch.stack([numbers, numbers + count], 1), desirable, torch.ones(count))


def _after(asked: TokenSample, answered: TokenSample, tokens: int) -> TokenSample:
    """The prompt of one sample and the response of another, at most so many tokens."""
    prompt, response = asked.trained.index(True), answered.trained.index(True)
    joined = TokenSample(
        asked.token_ids[:prompt] + answered.token_ids[response:], asked.trained[:prompt] + answered.trained[response:]
    )
    return joined.first(tokens)


def _balance(desirable: Tensor, loss: KtoLoss) -> list[str]:
    """A line for the user where the weights of the labels are not as the paper advises."""
    many, few = int(desirable.sum()), int((~desirable).sum())
    ratio = loss.desirable_weight * many / (loss.undesirable_weight * few)
    line = f"{many} desirable and {few} undesirable responses; weighted, {ratio:.2f} to 1"
    if 0.99 <= ratio <= 1.34:
        return [line]
    low, high = (share * loss.undesirable_weight * few / many for share in (1, 4 / 3))
    return [f"{line}: KTO's paper advises 1 to 1.33; set dpo.loss.desirable_weight between {low:.3g} and {high:.3g}"]
