"""How far a batch may be from the reference: a KL flows in, what to do about it flows out. Pure."""

from __future__ import annotations

from typing import NamedTuple

from orchestrator.config.kl import KlBudget
from orchestrator.errors import KlBudgetSpent


class Verdict(NamedTuple):
    """What a batch's KL asks for, such as `Verdict("KL 11.0 nats a response in step 3 is far from the reference")`."""

    told: str = ""
    """For the user; empty: nothing."""
    slow_down: float | None = None
    """What the actor's learning rate is multiplied by; None: it stays."""


def heed(budget: KlBudget, kl: float, step: int) -> Verdict:
    """What `budget` says of a batch of `step` with a KL of `kl` nats a response; KlBudgetSpent if the run must end."""
    far = f"KL {kl:.1f} nats a response in step {step}"
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
