"""What the reference of `tetrarch dpo` says of all responses, asked once and kept on the disk.

The reference is the model that the policy starts from: the policy's own ranks answer before the first step, and before
a checkpoint is loaded. No group of its own is started, and no second copy of the weights exists.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cluster.counts import counted
from cluster.ranks.role_group import RoleGroup
from orchestrator.config.dpo import DpoRun
from orchestrator.data.preference_samples import DpoData
from orchestrator.groups.spread import spread
from orchestrator.report.reporter import Reporter
from orchestrator.run.reference_cache import REFERENCES, cached, content_key, keep
from roles.batch import Sequences
from roles.preference_policy import PreferencePolicy

ASKED_AT_ONCE = 4096
"""Responses that are asked at a time, and kept together."""


@dataclass(frozen=True, slots=True)
class ReferenceLogprobs:
    """The reference's log-probabilities; zeros for a loss without a reference."""

    model: str | None
    """A hash of the reference; None for a loss without one."""
    training: Tensor
    """float32 `[responses]`, in nats, summed over each response."""
    heldout: Tensor | None


def ask_reference(
    trainer: RoleGroup[PreferencePolicy], config: DpoRun, folder: Path, data: DpoData, report: Reporter
) -> ReferenceLogprobs:
    """Log-probabilities of all responses by the model in `folder`, which the ranks of `trainer` must still have; what
    was asked before is read from `model_cache`."""
    parts = [data.training.responses] + ([data.heldout.responses] if data.heldout else [])
    model, found = None, [torch.zeros(len(part)) for part in parts]
    if config.dpo.loss.referenced:
        report.status("asking the reference")
        weights = trainer.call(PreferencePolicy.reference_fingerprint).result(config.deadlines.score_s)[0]
        model, cache = _model_key(weights, config, folder), Path(config.model_cache) / REFERENCES
        asked = 0
        for number, part in enumerate(parts):
            answers = []
            for rows in torch.arange(len(part)).split(ASKED_AT_ONCE):
                some = part.select(rows.tolist())
                key = content_key(model, some)
                known = cached(cache, key, len(some))
                if known is None:
                    asked += len(some)
                    known = response_logprobs(trainer, some, config.deadlines.score_s)
                    keep(cache, key, known)
                answers.append(known)
            found[number] = torch.cat(answers)
        total = sum(map(len, parts))
        report.note(f"reference: {counted(total, 'response')}, {total - asked} of them known from {cache}")
    return ReferenceLogprobs(model, found[0], found[1] if data.heldout else None)


def response_logprobs(trainer: RoleGroup[PreferencePolicy], responses: Sequences, deadline_s: float) -> Tensor:
    """float32 `[batch]`, in nats: log-probability of each response by the current policy."""
    parts = (responses.select(rows.tolist()) for rows in torch.arange(len(responses)).split(ASKED_AT_ONCE))
    return torch.cat([spread(trainer, PreferencePolicy.response_logprobs, part).result(deadline_s) for part in parts])


def _model_key(weights: str, config: DpoRun, folder: Path) -> str:
    """A hash of everything but the tokens that the numbers depend on, except for rounding: weights, architecture and
    its code, dtype, device."""
    sha = hashlib.sha256(f"{weights} {config.dtype} {config.device}".encode())
    for file in sorted([folder / "config.json", *folder.glob("*.py")]):
        sha.update(hashlib.sha256(file.read_bytes()).digest())
    return sha.hexdigest()
