"""The data set of a policy's training → samples to train on, and some held out. A ConfigError names a bad row."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from transformers import PreTrainedTokenizerBase

from orchestrator.config.data import RecordsConfig
from orchestrator.config.policy_training import PolicyTrainingConfig
from orchestrator.data.records import RecordKind
from orchestrator.data.samples import Samples, read_samples
from orchestrator.display_text import not_utf8
from orchestrator.errors import ConfigError
from roles.batch import Sequences
from roles.packing import right_padded
from roles.seeds import stable_seed
from roles.text.sample_tokens import TokenSample


class RowLimits(Protocol):
    """A section of the configuration that says how long its rows may be."""

    key: ClassVar[str]

    @property
    def max_tokens(self) -> int:
        """Longest row, in tokens."""

    @property
    def too_long(self) -> Literal["error", "skip", "truncate"]:
        """What becomes of a longer one."""


@dataclass(frozen=True, slots=True)
class TrainingParts:
    """What a policy is trained on, and what it is tested on."""

    training: Samples
    heldout: Samples | None
    statistics: tuple[str, ...]
    """For the user: what was read, in lines."""


def read_parts(
    config: PolicyTrainingConfig, kind: RecordKind, tokenizer: PreTrainedTokenizerBase, seed: int
) -> TrainingParts:
    """The samples of `data` and `heldout`, none longer than `max_tokens`."""
    training, heldout = read_within(config.data, "data", kind, config, tokenizer), None
    lines = training.statistics.lines()
    if config.heldout is not None:
        heldout = read_within(config.heldout, "heldout", kind, config, tokenizer)
        lines += heldout.statistics.lines()
    elif config.heldout_fraction:
        training, heldout = _split(training, config, (seed, kind))
    return TrainingParts(training, heldout, tuple(lines))


def with_template(tokenizer: PreTrainedTokenizerBase, file: str | None, section: str) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template in `file`, if there is one. `section`: key of the training's section."""
    if file is not None:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{section}.chat_template={file} cannot be read: {not_utf8(error)}") from None
        except OSError as error:
            raise ConfigError(f"{section}.chat_template={file} cannot be read: {error}; name a Jinja file") from None
    return tokenizer


def padded(samples: Sequence[TokenSample], pad: int, *, whole: bool = False) -> Sequences:
    """A row for each sample; the mask has what is trained on, or with `whole` all tokens that another comes before."""
    token_ids, lengths = right_padded([sample.token_ids for sample in samples], pad)
    mask = right_padded([[whole or token for token in sample.trained] for sample in samples])[0].bool()
    mask[:, 0] = False  # nothing comes before the first token
    return Sequences(token_ids, lengths, mask)


def read_within(
    data: RecordsConfig, name: str, kind: RecordKind, config: RowLimits, tokenizer: PreTrainedTokenizerBase
) -> Samples:
    """The samples of `data`, the key `name` of the section `config`, none longer than `max_tokens`."""
    key, limit = f"{config.key}.{name}", f"{config.key}.max_tokens={config.max_tokens}"
    samples = read_samples(data, key, kind, tokenizer)
    longest = [max(map(len, group)) for group in samples.groups]
    long = [number for number, tokens in enumerate(longest) if tokens > config.max_tokens]
    if long and config.too_long == "error":
        raise ConfigError(
            f"{key}: {len(long)} of {len(samples)} samples are longer than {limit} (the longest has {max(longest)} "
            f"tokens); raise it, or set {config.key}.too_long to skip or truncate"
        )
    if config.too_long == "truncate":
        samples = samples.cut(config.max_tokens)
    else:
        samples = samples.without(long, f"longer than {limit}")
    alike = [n for n, group in enumerate(samples.groups) if len(group) > 1 and all(one == group[0] for one in group)]
    return samples.without(alike, "the responses are the same tokens")


def _split(samples: Samples, config: PolicyTrainingConfig, seed: tuple[int, str]) -> tuple[Samples, Samples]:
    """Training and held-out samples, each in their order."""
    count = round(len(samples) * config.heldout_fraction)
    if not 0 < count < len(samples):
        section = config.key
        raise ConfigError(
            f"{section}.data: too few samples ({len(samples)}) to hold out {section}.heldout_fraction="
            f"{config.heldout_fraction}; give more, set {section}.heldout, or set {section}.heldout_fraction=0"
        )
    aside = set(random.Random(stable_seed(*seed)).sample(range(len(samples)), count))
    return _some(samples, [n for n in range(len(samples)) if n not in aside]), _some(samples, sorted(aside))


def _some(samples: Samples, numbers: list[int]) -> Samples:
    groups, values = [samples.groups[n] for n in numbers], [samples.values[n] for n in numbers]
    return replace(samples, groups=groups, values=values, certainty=[samples.certainty[n] for n in numbers])
