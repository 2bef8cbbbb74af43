"""A run that starts again with the same command: from its newest checkpoint when a trained rank or a keeper fails
(`recovery.on_rank_failure`), from a good one when an alert says so. A configuration and a stage flow in; what a run
leaves in `run_dir` flows out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import ClusterError, NodeLost, PlacementError
from cluster.role_table import KEEPER
from cluster.runtime.orders import ORDERS
from orchestrator.config.base import BaseConfig
from orchestrator.errors import NotFinite, RollBack
from orchestrator.groups.recovery import Recovery, brief
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import Resume
from orchestrator.run.way_back import WayBack
from orchestrator.stages.run import StartStage, carry_out


def carry_through(
    config: BaseConfig, resume: Resume, start: StartStage, back: WayBack | None = None, **report: Any
) -> None:
    """As `carry_out`; after the failure of a trained rank or a keeper, or an alert, all roles are started again, if the
    configuration says so. NodeLost if what is left of the cluster has no room for them.

    Args:
        back: says where an alert sends the run; None for stages without alerts.
    """
    again, why = Recovery(config.recovery), ""
    while True:
        try:
            return carry_out(config, resume, start, again, why, **report)
        except PlacementError as error:
            if not why:
                raise
            raise NodeLost(f"{why}. There is no room for them any more: {error}") from error
        except (ClusterError, NotFinite, RollBack) as error:
            earlier = back.after(error) if back else None
            if earlier is not None:
                resume, why = earlier
                again.count("healing/rollbacks", 1)
            elif isinstance(error, ClusterError):
                resume, why = "newest", _why_again(config, error, again)
            else:
                raise
        ORDERS.release()  # the update that was broken off had held back requests to end


def _why_again(config: BaseConfig, error: ClusterError, again: Recovery) -> str:
    """Why the run starts again; raises `error` if it may not, or if there is no checkpoint of every rank blamed. A
    keeper needs none: it has rows of a single step."""
    newest = Checkpoints(Path(config.run_dir) / "checkpoints", config.checkpoint.keep).newest(content=True)
    failed = {who.role for who in error.blamed}
    if config.recovery.on_rank_failure == "stop" or newest is None or not failed:
        raise error
    if not all((newest.path / role).exists() for role in failed - {KEEPER}):
        raise error
    again.survive("trained_failures_per_hour", error)
    again.count("healing/run_restarts", 1)
    return f"{brief(error)}: all roles are started again, and the run goes on from step {newest.step}"
