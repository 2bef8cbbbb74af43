"""How far the policy has gone from the reference: coefficient controllers and health bands. Pure maths.

All numbers are nats; the estimators are in `roles.losses.kl_estimators`. `orchestrator.ppo.step` feeds the KL of each
batch, summed over a response and averaged over responses, to the controller; the reports draw the bands.
"""

from __future__ import annotations

from typing import Any, Protocol

from orchestrator.config.kl import AdaptiveKl, FixedKl
from orchestrator.errors import CheckpointError


class KlController(Protocol):
    """Holds the KL coefficient β and moves it once a PPO step."""

    @property
    def coefficient(self) -> float:
        """β: the reward of a token loses β·k1."""

    def update(self, kl: float, samples: int) -> None:
        """Takes the batch's KL (nats, summed over a response, mean over responses) and its number of responses."""

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class FixedController:
    """A constant coefficient."""

    def __init__(self, coefficient: float) -> None:
        self._coefficient = coefficient

    @property
    def coefficient(self) -> float:
        """β."""
        return self._coefficient

    def update(self, kl: float, samples: int) -> None:
        """Nothing moves."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to remember: the configuration has it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class AdaptiveController:
    """Ziegler et al. (arXiv 1909.08593, section 2.2): β ← β·(1 + clip(KL/target - 1, ±0.2)·samples/horizon).

    `samples/horizon` is held at 1, so that a batch larger than the horizon cannot turn β negative.
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
        """Raises β where the KL is over the target, lowers it where it is under."""
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self._coefficient *= 1.0 + error * min(1.0, samples / self.horizon)

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"coefficient": self._coefficient}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the coefficient back."""
        if "coefficient" not in state:
            raise CheckpointError(
                "the checkpoint holds no KL coefficient: it was made with ppo.kl.controller of type fixed; "
                "resume with that, or start a new run"
            )
        self._coefficient = float(state["coefficient"])


def make_controller(config: FixedKl | AdaptiveKl) -> KlController:
    """The controller that `ppo.kl.controller` describes."""
    if isinstance(config, AdaptiveKl):
        return AdaptiveController(config.initial, config.target, config.horizon)
    return FixedController(config.coefficient)
