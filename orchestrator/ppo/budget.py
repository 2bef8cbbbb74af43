"""Limits of the distance from the reference: a batch's KL flows in, the reaction to it flows out. Pure."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.config.kl import KlBudget
from orchestrator.errors import KlBudgetSpent


class Verdict(NamedTuple):
    """The reaction to a batch's KL: `Verdict("KL 11.0 nats per response in step 3 is far from the reference")`."""

    told: str = ""
    """A warning for the user; empty: none."""
    slow_down: float | None = None
    """Factor for the actor's learning rate; None: no change."""


def heed(budget: KlBudget, kl: float, step: int) -> Verdict:
    """The reaction to a KL of `kl` nats per response in `step`; raises KlBudgetSpent if the run must end."""
    far = f"KL {kl:.1f} nats per response in step {step}"
    if budget.stop is not None and kl > budget.stop:
        raise KlBudgetSpent(
            f"{far} is over ppo.kl.budget.stop={budget.stop:g}; a checkpoint is saved. Go on from an earlier one "
            "(--resume-from STEP) with a lower learning rate or a larger KL coefficient"
        )
    if budget.slow_down is not None and kl > budget.slow_down:
        return Verdict(f"{far}: the actor's learning rate is multiplied by {budget.factor:g}", budget.factor)
    if budget.warn is not None and kl > budget.warn:
        return Verdict(f"{far} is far from the reference")
    return Verdict()
