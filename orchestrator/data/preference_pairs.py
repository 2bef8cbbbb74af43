"""A data set of comparisons → Preferences. Rows flow in, token ids flow out; a ConfigError names a bad row."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
from transformers import PreTrainedTokenizerBase

from orchestrator.config.data import RecordsConfig
from orchestrator.data.samples import read_samples
from roles.batch import Preferences
from roles.packing import right_padded
from roles.text.tokenizer import filler

KEY = "reward_training.pairs.dataset"


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of a data set."""

    preferences: Preferences
    example: str
    """For the user: the preferred response of the first row as it was given and as the model reads it."""
    statistics: tuple[str, ...] = ()
    """For the user: what was read, in lines."""

    @property
    def summary(self) -> str:
        """For the user: the number of pairs, and their lengths."""
        return "\n".join([*self.statistics, self.preferences.summary])


def read_pairs(dataset: RecordsConfig, tokenizer: PreTrainedTokenizerBase) -> Pairs:
    """Rows with `chosen` and `rejected`, or with ranked `responses`, tokenised."""
    samples = read_samples(dataset, KEY, "preferences", tokenizer)
    sequences = [sample.token_ids for sample in chain.from_iterable(samples.groups)]
    token_ids, lengths = right_padded(sequences, filler(tokenizer))
    groups = torch.tensor([number for number, group in enumerate(samples.groups) for _ in group])
    ranks = torch.tensor(list(chain.from_iterable(samples.values)), dtype=torch.float32)
    certainty = torch.tensor([samples.certainty[number] for number in groups.tolist()], dtype=torch.float32)
    preferences = Preferences(token_ids, lengths, groups, ranks, certainty)
    return Pairs(preferences, samples.example, tuple(samples.statistics.lines()))
