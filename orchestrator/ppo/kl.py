"""Controllers of the KL coefficient. Pure maths.

All numbers are nats; the estimators are in `roles.losses.kl_estimators`. The KL of each batch, summed over a response
and averaged over responses, flows into the controller; the coefficient flows out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from orchestrator.config.kl import AdaptiveKl, FixedKl, KlBudget
from orchestrator.errors import CheckpointError
from orchestrator.metrics import RESPONSE_LENGTH


class KlController(Protocol):
    """Holds the KL coefficient β and adjusts it once per PPO step."""

    @property
    def coefficient(self) -> float:
        """β: the reward of a token is reduced by β·k1."""

    def update(self, kl: float, samples: int) -> None:
        """Adjust β to a batch's KL (nats, summed over a response, mean over responses) of `samples` responses."""

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint, as plain values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the values of `state_dict`."""


def slow_down_of(budget: KlBudget, metrics: Mapping[str, float]) -> float | None:
    """What the actor's learning rate is multiplied by after a step with these metrics; None: it stays. So it does after
    a step that has not trained the actor: the step that does will see the KL of the same weights."""
    limit = budget.slow_down
    if limit is None or "lr/actor" not in metrics:
        return None
    return budget.factor if metrics["objective/kl"] > budget.at(limit, metrics[RESPONSE_LENGTH]) else None


class FixedController:
    """A constant coefficient."""

    def __init__(self, coefficient: float) -> None:
        self._coefficient = coefficient

    @property
    def coefficient(self) -> float:
        """β."""
        return self._coefficient

    def update(self, kl: float, samples: int) -> None:
        """Does nothing: the coefficient is constant."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: the configuration has the coefficient."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing: there is no state."""


class AdaptiveController:
    """Ziegler et al. (arXiv 1909.08593, section 2.2): β ← β·(1 + clip(KL/target - 1, ±0.2)·samples/horizon).

    `samples/horizon` is at most 1, so that a batch larger than the horizon cannot make β negative.
    """

    def __init__(self, initial: float, target: float, horizon: int) -> None:
        self._coefficient = initial
        self.target = target
        self.horizon = horizon

    @property
    def coefficient(self) -> float:
        """β."""
        return self._coefficient

    def update(self, kl: float, samples: int) -> None:
        """Raise β if the KL is above the target, lower it if it is below."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self._coefficient *= 1.0 + error * min(1.0, samples / self.horizon)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self._coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the coefficient."""
        if "coefficient" not in state:
            raise CheckpointError(
                "the checkpoint holds no KL coefficient: it was made with ppo.kl.controller of type fixed; "
                "resume with that, or start a new run"
            )
        self._coefficient = float(state["coefficient"])


def make_controller(config: FixedKl | AdaptiveKl) -> KlController:
    """The controller for `ppo.kl.controller`."""
    if isinstance(config, AdaptiveKl):
        return AdaptiveController(config.initial, config.target, config.horizon)
    return FixedController(config.coefficient)
