"""A data set of demonstrations → Demonstrations to train on, and some held out. A ConfigError names a bad row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase

from orchestrator.config.sft import SftConfig
from orchestrator.data.epochs import schedule_of
from orchestrator.data.samples import Samples
from orchestrator.data.training_parts import padded, read_parts
from roles.shares import Demonstrations


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
    parts = read_parts(config, "demonstrations", tokenizer, seed)
    training = _batch(parts.training, config, tokenizer.pad_token_id)
    heldout = _batch(parts.heldout, config, tokenizer.pad_token_id) if parts.heldout else None
    return SftData(training, heldout, parts.statistics, parts.training.example)


def _batch(samples: Samples, config: SftConfig, pad: int) -> Demonstrations:
    rows = padded([group[0] for group in samples.groups], pad, whole=config.train_on_prompt)
    return Demonstrations(rows.token_ids, rows.lengths, rows.response_mask, torch.arange(len(rows)))
