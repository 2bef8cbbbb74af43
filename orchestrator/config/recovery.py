"""How a run goes on when a rank fails: the section `recovery`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from roles.config.section import Section


class RecoveryConfig(Section):
    """Ranks that hold no training state are ended and started again when they fail, and what they had not answered is
    computed again. If that happens too often, the run ends with a checkpoint, as it does when a trained rank fails."""

    engine_failures_per_hour: int = Field(default=6, ge=0)
    """Number of failures of vLLM engines within any hour that the run survives: an engine that dies, raises an error
    of vLLM or passes its deadline. 0: the first one ends the run."""
    frozen_failures_per_hour: int = Field(default=6, ge=0)
    """The same for the ranks of frozen models (reference, rewards) and for the processes that call reward functions,
    services and judges: a group of which a rank fails is started again as a whole. 0: the first one ends the run."""
    on_rank_failure: Literal["restart", "stop"] = "stop"
    """When a trained rank or a keeper (`row_keepers`) fails: end the run, or start all its roles again and go on from
    the newest checkpoint, as a new command with `--resume` would."""
    trained_failures_per_hour: int = Field(default=2, ge=0)
    """Number of such failures within any hour after which the run starts again, if `on_rank_failure` says so."""
