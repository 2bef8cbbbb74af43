"""A data set of demonstrations → Demonstrations to train on, and some held out; or those of the pre-training loss. A
ConfigError names a bad row."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import save
from transformers import PreTrainedTokenizerBase

from orchestrator.config.ptx import PtxConfig
from orchestrator.config.sft import SftConfig
from orchestrator.data.epochs import EndlessOrder, schedule_of
from orchestrator.data.packed_demonstrations import PACKED, PackedDemonstrations, packed
from orchestrator.data.samples import Samples
from orchestrator.data.training_parts import padded, read_parts, read_within
from orchestrator.errors import CheckpointError
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
    ends: dict[int, str] = field(default_factory=dict)
    """See `Samples.ends`."""

    @property
    def summary(self) -> str:
        """For the user: what was read, and how much of it is held out."""
        heldout = 0 if self.heldout is None else len(self.heldout)
        return "\n".join([*self.statistics, f"{len(self.training)} demonstrations to train on, {heldout} held out"])

    def digest(self) -> str:
        """A hash of all tokens that are trained on."""
        return digest_of(self.training)

    def schedule(self, config: SftConfig, seed: int) -> list[list[int]]:
        """Demonstrations of each optimizer step: a fresh permutation in each epoch."""
        return schedule_of(range(len(self.training)), config.samples_per_step, config.epochs, (seed, "sft"))


@dataclass(frozen=True, slots=True)
class PtxData:
    """What the pre-training loss of a PPO run is computed on."""

    rows: PackedDemonstrations
    statistics: tuple[str, ...]
    """For the user: what was read, in lines."""
    example: str
    """For the user: one row as it was given and as the model reads it."""

    @property
    def summary(self) -> str:
        """For the user: what was read."""
        return "\n".join(self.statistics)


class PtxSource:
    """An endless sequence of rows for the pre-training loss: each pass is a new permutation; the position can be
    saved."""

    def __init__(self, data: PtxData, seed: int) -> None:
        self._rows = data.rows
        self._order = EndlessOrder(len(data.rows), (seed, "ptx"))
        self.drawn: Demonstrations | None = None
        """The rows that `next` has drawn last."""

    def next(self, count: int) -> Demonstrations:
        """The next `count` rows."""
        self.drawn = self._rows.select(self._order.next(count))
        return self.drawn

    def state_dict(self) -> dict[str, Any]:
        """The position in the data, as plain values for a checkpoint."""
        return {**self._order.state_dict(), "digest": self._rows.digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at the position `state`. CheckpointError if the data has changed."""
        if not self._knows(state["digest"]):
            raise CheckpointError(
                "the rows in ppo.ptx.data are not those of the checkpoint (other rows, tokenizer, max_tokens or "
                "too_long); restore them, or start anew with another run_dir"
            )
        self._order.load_state_dict(state)

    def _knows(self, digest: str) -> bool:
        """Earlier versions have hashed all rows padded to one length."""
        if digest.startswith(PACKED):
            return digest == self._rows.digest
        return digest == digest_of(self._rows.select(range(len(self._rows))))


def read_demonstrations(config: SftConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> SftData:
    """The samples of `sft.data` and `sft.heldout`, none longer than `max_tokens`."""
    parts = read_parts(config, "demonstrations", tokenizer, seed)
    training = _batch(parts.training, config, tokenizer.pad_token_id)
    heldout = _batch(parts.heldout, config, tokenizer.pad_token_id) if parts.heldout else None
    return SftData(training, heldout, parts.statistics, parts.training.example, parts.training.ends(tokenizer))


def read_ptx(config: PtxConfig, tokenizer: PreTrainedTokenizerBase) -> PtxData:
    """The samples of `ppo.ptx.data`, none longer than `max_tokens`."""
    samples = read_within(config.data, "data", "demonstrations", config, tokenizer)
    each = [group[0] for group in samples.groups]
    marks = ([True] * len(row.token_ids) if config.train_on_prompt else row.trained for row in each)
    rows = packed((row.token_ids for row in each), marks, tokenizer.pad_token_id)
    return PtxData(rows, tuple(samples.statistics.lines()), samples.example)


def digest_of(demonstrations: Demonstrations) -> str:
    """A hash of all tokens, and of which of them are trained on."""
    names = ("token_ids", "lengths", "response_mask")
    return hashlib.sha256(save({name: getattr(demonstrations, name).contiguous() for name in names})).hexdigest()


def _batch(samples: Samples, config: SftConfig, pad: int) -> Demonstrations:
    rows = padded([group[0] for group in samples.groups], pad, whole=config.train_on_prompt)
    return Demonstrations(rows.token_ids, rows.lengths, rows.response_mask, torch.arange(len(rows)))
