"""A data set of demonstrations → Demonstrations to train on, and some held out. A ConfigError names a bad row."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase

from orchestrator.config.data import RecordsConfig
from orchestrator.config.sft import SftConfig
from orchestrator.data.epochs import schedule_of
from orchestrator.data.samples import Samples, read_samples
from orchestrator.errors import ConfigError
from roles.packing import right_padded
from roles.seeds import stable_seed
from roles.shares import Demonstrations
from roles.text.sample_tokens import TokenSample


@dataclass(frozen=True, slots=True)
class SftData:
    """What a policy is fine-tuned on, and what it is tested on."""

    training: Demonstrations
    heldout: Demonstrations | None
    statistics: tuple[str, ...]
    """For the user: what was read, in lines."""
    example: str
    """For the user: one row as it was given and as the model reads it."""

    @property
    def summary(self) -> str:
        """For the user: what was read, and how much of it is held out."""
        heldout = 0 if self.heldout is None else len(self.heldout)
        return "\n".join([*self.statistics, f"{len(self.training)} demonstrations to train on, {heldout} held out"])

    def digest(self) -> str:
        """A hash of all tokens that are trained on."""
        training = self.training
        tensors = {name: getattr(training, name).contiguous() for name in ("token_ids", "lengths", "response_mask")}
        return hashlib.sha256(save(tensors)).hexdigest()

    def schedule(self, config: SftConfig, seed: int) -> list[list[int]]:
        """Demonstrations of each optimizer step: a fresh permutation in each epoch."""
        return schedule_of(range(len(self.training)), config.samples_per_step, config.epochs, (seed, "sft"))


def read_demonstrations(config: SftConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> SftData:
    """The samples of `sft.data` and `sft.heldout`, none longer than `max_tokens`."""
    samples = _read(config.data, "sft.data", config, tokenizer)
    training = [group[0] for group in samples.groups]
    lines, heldout = samples.statistics.lines(), []
    if config.heldout is not None:
        aside = _read(config.heldout, "sft.heldout", config, tokenizer)
        heldout, lines = [group[0] for group in aside.groups], [*lines, *aside.statistics.lines()]
    elif config.heldout_fraction:
        training, heldout = _split(training, config.heldout_fraction, seed)
    batches = [_batch(part, config, tokenizer.pad_token_id) for part in (training, heldout) if part]
    return SftData(batches[0], batches[1] if heldout else None, tuple(lines), samples.example)


def with_template(tokenizer: PreTrainedTokenizerBase, file: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer with the chat template in `file`, if there is one."""
    if file is not None:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"sft.chat_template={file} cannot be read: {error}; name a Jinja file") from None
    return tokenizer


def _read(data: RecordsConfig, key: str, config: SftConfig, tokenizer: PreTrainedTokenizerBase) -> Samples:
    samples = read_samples(data, key, "demonstrations", tokenizer)
    long = [number for number, group in enumerate(samples.groups) if len(group[0]) > config.max_tokens]
    if long and config.too_long == "error":
        longest = max(len(samples.groups[number][0]) for number in long)
        raise ConfigError(
            f"{key}: {len(long)} of {len(samples)} samples are longer than sft.max_tokens={config.max_tokens} (the "
            f"longest has {longest} tokens); raise it, or set sft.too_long to skip or truncate"
        )
    if config.too_long == "truncate":
        return samples.cut(config.max_tokens)
    return samples.without(long, f"longer than sft.max_tokens={config.max_tokens}")


def _split(samples: list[TokenSample], fraction: float, seed: int) -> tuple[list[TokenSample], list[TokenSample]]:
    """Training and held-out samples, each in their order."""
    count = round(len(samples) * fraction)
    if not 0 < count < len(samples):
        raise ConfigError(
            f"sft.data: {len(samples)} samples are too few to hold out sft.heldout_fraction={fraction}; give more, set "
            "sft.heldout, or set sft.heldout_fraction=0"
        )
    aside = set(random.Random(stable_seed(seed, "demonstrations")).sample(range(len(samples)), count))
    return (
        [sample for number, sample in enumerate(samples) if number not in aside],
        [samples[number] for number in sorted(aside)],
    )


def _batch(samples: Sequence[TokenSample], config: SftConfig, pad: int) -> Demonstrations:
    token_ids, lengths = right_padded([sample.token_ids for sample in samples], pad)
    trained = [[config.train_on_prompt or token for token in sample.trained] for sample in samples]
    mask = right_padded(trained)[0].bool()
    mask[:, 0] = False  # nothing comes before the first token
    return Demonstrations(token_ids, lengths, mask, torch.arange(len(samples)))
