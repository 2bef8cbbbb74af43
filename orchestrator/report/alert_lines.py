"""What `alerts.jsonl` holds: the alerts of a run, and the times that it went back to a checkpoint because of one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Alert:
    """A rule that has fired. Example: `Alert(7, "kl", "warn", "objective/kl 12.1, above 10", "The policy is …")`."""

    step: int
    rule: str
    """Its section in `alerts`, or the key that sets its bound."""
    action: str
    """`warn`, `rollback` or `stop`."""
    seen: str
    """The numbers."""
    means: str
    """What they mean, and what people do about it."""
    good: int = 0
    """The last step whose weights were not bad yet."""

    def __str__(self) -> str:
        return f"{self.rule} in step {self.step}: {self.seen}. {self.means}"


@dataclass(frozen=True, slots=True)
class WentBack:
    """A run that went back because of an alert, and goes on from `step`."""

    step: int
    rule: str
    at: int
    """The step in which the rule fired."""
    factor: float
    """What the learning rates are multiplied by from here on, all times together."""
    times: int
    """How often the run has gone back, this time included."""
