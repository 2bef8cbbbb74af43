"""The policy's training half: log-probabilities and the clipped policy-gradient update under ZeRO.

Sequences flow in and log-probabilities out; then a share of the experience flows in and the weights change; then they
are pushed to the vLLM engines. One instance a rank; the driver calls the same method on all of them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from roles.batch import Sequences
from roles.config.losses import PolicyLossConfig
from roles.losses.importance import IMPORTANCE
from roles.losses.kl_estimators import KL_ESTIMATORS
from roles.losses.policy_loss import POLICY_LOSSES, approx_kl, log_ratio
from roles.measured import metric
from roles.models.early_end import ANY_TIME, EarlyEnd
from roles.models.lora import adapters_off
from roles.shares import ActorExperience, Demonstrations, RankShare
from roles.transfer.facts import EngineClient
from roles.transfer.probe import Products
from roles.transfer.push import WeightPusher
from roles.zero.micro_batch import Lesson, MicroBatch, Objective, learn, per_token, picked
from roles.zero.setup import ModelSetup
from roles.zero.trained_rank import ImitationSums, TrainedPolicy


@dataclass(frozen=True, slots=True)
class PtxStats:
    """The pre-training loss in an update over all ranks."""

    loss: float = metric("ptx/loss")
    """Nats per token, without its coefficient; each row as its optimizer step found the weights."""
    tokens: float = metric("ptx/tokens")
    """Tokens that were trained on."""


@dataclass(frozen=True, slots=True)
class ActorStats:
    """An update over all ranks. Means are over the trained tokens of all its optimizer steps, unless said otherwise."""

    loss: float = metric("policy/loss")
    """Mean over the optimizer steps; without the entropy bonus."""
    approx_kl: float = metric("policy/approx_kl")
    """Nats a token between the policy that sampled and the one that is trained."""
    clip_fraction: float = metric("policy/clip_fraction")
    ratio_first_minibatch: float = metric("policy/ratio_first_minibatch")
    """Mean probability ratio of the first optimizer step: 1, since nothing has changed yet; NaN without a token."""
    entropy: float = metric("objective/entropy")
    """Nats a token."""
    importance: float = metric("policy/importance_mean")
    """Mean weight for vLLM's distribution differing from the trainer's; 1 without a correction."""
    gradient_norm: float = metric("policy/gradient_norm")
    """Before clipping; mean over the optimizer steps."""
    learning_rate: float = metric("lr/actor")
    """Of the last optimizer step."""
    ptx: PtxStats | None = None
    """None without a pre-training loss."""


@dataclass(frozen=True, slots=True)
class LossExtra:
    """What the policy loss takes from other parts of the configuration."""

    max_response_tokens: int = 1
    """What `mean: constant` divides by."""
    kl_estimator: str | None = None
    """Of a KL penalty that stands in the loss."""
    first_pass: bool = False
    """The update is one optimizer step, whose forward pass gives the old log-probabilities too."""
    ptx_coefficient: float = 0.0
    """Factor of the pre-training loss."""


class PolicySums(NamedTuple):
    """What a loss measures, summed over the trained tokens."""

    tokens: Tensor
    kl: Tensor
    """Nats between the policy that sampled and the one that is trained."""
    clipped: Tensor
    entropy: Tensor
    """Nats."""
    ratio: Tensor
    """Of probabilities, new over old."""
    loss: Tensor
    """Weighted; without the KL penalty and the entropy bonus."""
    importance: Tensor
    """Weights for vLLM's distribution differing from the trainer's."""


class Actor(TrainedPolicy):
    """One rank of the policy."""

    def __init__(
        self,
        setup: ModelSetup,
        loss: PolicyLossConfig,
        temperature: float,
        extra: LossExtra | None = None,
        early_end: EarlyEnd = ANY_TIME,
    ) -> None:
        super().__init__(setup)
        self._loss = loss
        self._early_end = early_end
        self._extra = extra or LossExtra()
        self._temperature = temperature
        self._pusher: WeightPusher | None = None

    def logprobs(self, sequences: Sequences) -> Tensor:
        """float32 `[n]`: log-probability of each generated token, row after row, in the distribution that was sampled:
        at its temperature, without the tokens that it forbids."""
        return per_token(self._model, sequences, lambda micro: self._forward(micro)[0])

    def canary_logprobs(self, sequences: Sequences) -> Tensor:
        """The same of a few samples, by which the engines' weights are checked: under a name of its own."""
        return self.logprobs(sequences)

    def reference_logprobs(self, sequences: Sequences) -> Tensor:
        """The same of the policy as it was before it got adapters: what `Reference` answers."""
        with adapters_off(self._model.module):
            return self.logprobs(sequences)

    def reference_fingerprint(self) -> str:
        """A hash of all weights but the adapters: they must never change."""
        return self._model.fingerprint(adapted=False)

    def update(self, share: RankShare[ActorExperience], kl_coefficient: float = 0.0) -> ActorStats:
        """The optimizer steps of this rank's share; a KL in the loss has this weight."""
        loss = partial(self._micro_batch_loss, kl_coefficient)
        objective = Objective(loss, PolicySums, self._loss.mean, self._extra.max_response_tokens)
        policy, ptx = Lesson(self._model, share, objective), self._pretraining(share.beside)
        facts = learn(self._model, policy, *([ptx] if ptx else []))
        done = policy.learned(facts)
        steps, total = done.steps, done.total
        tokens = max(float(total.tokens), 1)
        return ActorStats(
            loss=float((steps.loss / done.denominators).mean()),
            approx_kl=float(total.kl) / tokens,
            clip_fraction=float(total.clipped) / tokens,
            ratio_first_minibatch=float(steps.ratio[0] / steps.tokens[0]),
            entropy=float(total.entropy) / tokens,
            importance=float(total.importance) / tokens,
            gradient_norm=done.gradient_norm,
            learning_rate=done.learning_rate,
            ptx=_ptx_stats(ptx.learned(facts).total) if ptx else None,
        )

    def update_from(
        self,
        steps: list[list[int]],
        beside: RankShare[Demonstrations] | None,
        kl_coefficient: float,
        *parts: ActorExperience,
    ) -> ActorStats:
        """`update` with a share whose rows come in several parts; its fields are those of `RankShare`."""
        return self.update(RankShare(ActorExperience.concatenate(parts), steps, beside), kl_coefficient)

    def expect(self, optimizer_steps: int) -> None:
        """Let the learning rate's schedule end after so many optimizer steps."""
        self._model.expect(optimizer_steps)

    def connect(self, client: EngineClient) -> None:
        """Meet the vLLM engines behind `client`; once, before the first push."""
        address = os.environ["MASTER_ADDR"]  # rank 0 is there, and it alone sends
        self._pusher = WeightPusher(
            self._model.module.model, client, rank=self._model.rank, address=address, timeout_s=client.deadline_s
        )

    def push(self, version: int) -> None:
        """Give every engine the weights as they are, under the number `version`."""
        assert self._pusher is not None, "connect comes first"
        self._pusher.push(version)
        self._model.give_back()

    def weight_products(self) -> Products:
        """What tells these weights from those of an engine (`roles.transfer.probe`)."""
        assert self._pusher is not None, "connect comes first"
        return self._pusher.products()

    def save_average(self, folder: str | Path) -> None:
        """The same, of the running mean of the weights (`ema_decay`)."""
        self._model.save_average(folder)

    def _pretraining(self, share: RankShare[Demonstrations] | None) -> Lesson[Demonstrations, ImitationSums] | None:
        """The pre-training loss of PPO-ptx (Ouyang et al., arXiv 2203.02155, equation 2): a mean over the tokens of an
        optimizer step, at temperature 1."""
        if share is None:
            return None
        objective = Objective(self._imitation_loss, ImitationSums, "token")
        coefficient = self._extra.ptx_coefficient
        return Lesson(self._model, share, objective, coefficient=coefficient, rows_of="ppo.ptx.data")

    def _forward(self, micro: MicroBatch, with_entropy: bool = False) -> tuple[Tensor, Tensor | None]:
        answer: tuple[Tensor, Tensor | None] = self._model(
            packed=micro.packed,
            positions=micro.positions,
            labels=micro.labels,
            temperature=self._temperature,
            with_entropy=with_entropy,
            forbidden=self._early_end.forbidden(micro.places),
        )
        return answer

    def _micro_batch_loss(
        self, kl_coefficient: float, batch: ActorExperience, rows: list[int], weights: Tensor
    ) -> tuple[Tensor, PolicySums]:
        """The weighted sum of the losses of `rows`, and what it measured."""
        config, device = self._loss, self._model.device
        micro = MicroBatch.of(batch, rows, device)
        logprobs, entropy = self._forward(micro, with_entropy=True)
        assert entropy is not None
        weight = picked(weights, batch, rows, device)
        old = logprobs.detach() if self._extra.first_pass else picked(batch.old_logprobs, batch, rows, device)
        losses, clipped = POLICY_LOSSES[config.type](
            logprobs,
            old,
            picked(batch.advantages, batch, rows, device),
            clip_low=config.clip,
            clip_high=config.clip if config.clip_high is None else config.clip_high,
            dual_clip=config.dual_clip,
            sequences=micro.sequences,
        )
        rollout = picked(batch.rollout_logprobs, batch, rows, device)
        importance = IMPORTANCE[config.importance.type](
            old, rollout, micro.sequences, **config.importance.model_dump(exclude={"type"})
        )
        loss = (losses * importance * weight).sum()
        with torch.no_grad():
            measured = PolicySums(
                tokens=torch.tensor(float(len(old)), device=device),
                kl=approx_kl(logprobs, old).sum(),
                clipped=clipped.sum(),
                entropy=entropy.sum(),
                ratio=log_ratio(logprobs, old).exp().sum(),
                loss=loss,
                importance=importance.sum(),
            )
        if self._extra.kl_estimator:
            # A stand-in is compared with itself: its token may be so unlikely that k3 is infinite, and 0 · ∞ is NaN.
            reference = picked(batch.reference_logprobs, batch, rows, device) if rows else logprobs.detach()
            kl_to_reference = KL_ESTIMATORS[self._extra.kl_estimator](logprobs, reference)
            loss = loss + kl_coefficient * (kl_to_reference * weight).sum()
        if config.entropy_coefficient:
            loss = loss - config.entropy_coefficient * (entropy * weight).sum()
        return loss, measured


def _ptx_stats(total: ImitationSums) -> PtxStats:
    tokens = float(total.tokens)
    return PtxStats(float(total.loss) / max(tokens, 1), tokens)
