"""The losses that a policy learns preferences with. Imports no engine."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from roles.config.section import Section


class _Referenced(Section):
    """A loss of log π/π_ref, the log-probability of a response less that of the reference."""

    referenced: ClassVar[bool] = True
    """Whether the loss needs the reference's log-probabilities."""

    beta: float = Field(default=0.1, gt=0)
    """Weight of the KL to the reference: the higher, the closer the policy stays to it."""


class _Free(Section):
    """A loss without a reference."""

    referenced: ClassVar[bool] = False
    """Whether the loss needs the reference's log-probabilities."""


class SigmoidLoss(_Referenced):
    """DPO; with `label_smoothing` cDPO."""

    type: Literal["sigmoid"]
    """DPO (arXiv 2305.18290)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that a label is wrong."""


class RobustLoss(_Referenced):
    """DPO's loss of the true labels, estimated from labels that may be wrong."""

    type: Literal["robust"]
    """Robust DPO (arXiv 2403.00409)."""
    label_smoothing: float = Field(default=0.1, gt=0, lt=0.5)
    """Probability that a label is wrong."""


class IpoLoss(_Referenced):
    """IPO on log-probabilities per token, so that long responses do not count more; the paper's are sums."""

    type: Literal["ipo"]
    """IPO (arXiv 2310.12036), length-normalised."""


class HingeLoss(_Referenced):
    """The hinge of SLiC on DPO's margin."""

    type: Literal["hinge"]
    """Hinge (arXiv 2309.06657)."""


class KtoLoss(_Referenced):
    """KTO: labelled responses (`prompt`, `completion`, `label`) instead of pairs."""

    type: Literal["kto"]
    """KTO (arXiv 2402.01306)."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """λ_D, weight of the responses with the label true. For unbalanced labels choose both weights so that λ_D times the
    number of desirable responses is 1 to 3/2 times λ_U times the number of the others."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """λ_U, weight of the responses with the label false."""


class SimpoLoss(_Free):
    """SimPO: no reference, log-probabilities per token."""

    type: Literal["simpo"]
    """SimPO (arXiv 2405.14734)."""
    beta: float = Field(default=2.0, gt=0)
    """Scale of the rewards."""
    target_margin: float = Field(default=1.0, ge=0)
    """By how much the reward of the chosen response shall be higher."""


class OrpoLoss(_Free):
    """ORPO: no reference, the cross-entropy of the chosen response and a log odds ratio."""

    type: Literal["orpo"]
    """ORPO (arXiv 2403.07691)."""
    weight: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio's loss."""


SOFT_LABELS = ("sigmoid", "ipo", "hinge", "simpo")
"""Types of losses that are defined for a pair whose order is only probable: the mean over both orders."""

PairLossConfig = SigmoidLoss | RobustLoss | IpoLoss | HingeLoss | SimpoLoss | OrpoLoss
PreferenceLossConfig = Annotated[PairLossConfig | KtoLoss, Field(discriminator="type")]
