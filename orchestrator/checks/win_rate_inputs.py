"""Checks the other run of a win rate before anything starts: a configuration and the held-out prompts flow in; nothing
flows out, or a ConfigError that names key, value and fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.evaluation import EvaluationRun, WinRate
from orchestrator.errors import ConfigError
from orchestrator.run.endpoint_key import endpoint_key

if TYPE_CHECKING:
    from orchestrator.data.prompts import Questions


def check_opponent(config: EvaluationRun, heldout: Questions, count: int | None) -> None:
    """The judge can be asked, and the other run has a response to each of the first `count` held-out prompts (None:
    to all)."""
    judge = config.evaluation.judge
    if not isinstance(judge, WinRate):
        return
    if config.environment is not None:
        raise ConfigError(
            "evaluation.judge.type=win_rate compares single responses, not conversations; use a function, or set "
            "environment=null"
        )
    endpoint_key(judge.asks, "evaluation.judge.asks")
    from orchestrator.data.opponents import AGAINST, given_prompts, identity, read_opponent

    others = read_opponent(judge)
    for row, prompt in enumerate(given_prompts(heldout.texts, heldout.columns)[:count]):
        if identity(prompt) not in others:
            raise ConfigError(
                f"{AGAINST}={judge.against} has no response to the prompt of {heldout.where.row(row)}; evaluate that "
                "run on the same prompts: tetrarch evaluate CONFIG run_dir=…"
            )
