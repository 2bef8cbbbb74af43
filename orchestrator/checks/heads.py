"""Checks of the head of a model that gives numbers: whether there is one, and how it is read."""

from __future__ import annotations

from orchestrator.checks.models import ModelFacts
from orchestrator.errors import ConfigError
from roles.config.models import Pooling


def check_reward_head(reward: ModelFacts) -> None:
    """Raise ConfigError unless the model has a head with one output."""
    if reward.head is None:
        names = ", ".join(reward.config.get("architectures") or ["an unknown architecture"])
        raise ConfigError(
            f"{reward.where} is {names}, not a reward model (…ForSequenceClassification, or a value head): its weights "
            "have no head; train one: tetrarch reward CONFIG"
        )


def check_pooling(backbone: ModelFacts, pooling: Pooling | None) -> None:
    """Raise ConfigError if a head that has been trained would be read otherwise from now on."""
    trained = backbone.config.get("score_pooling", "last")
    if pooling is not None and backbone.head is not None and pooling != trained:
        raise ConfigError(
            f"reward_training.pooling={pooling}, but the head in {backbone.where} is read as `{trained}` "
            "(score_pooling in its config.json); leave it out, or start from a language model"
        )
