"""Which policy `tetrarch evaluate` measures: that of the run, that of one of its checkpoints, or what the configuration
names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from cluster.role_table import ACTOR
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.run.checkpoint import saved_step
from orchestrator.stages.model_export import StoredModel


class MeasuredPolicy(NamedTuple):
    """The policy that `tetrarch evaluate` measures."""

    folder: Path | None
    """Where it is; None: as `actor.model` says."""
    step: int
    """Of the run that trained it; 0 if none did."""
    label: str


def measured_policy(config: EvaluationRun) -> MeasuredPolicy:
    """The actor of the run in `run_dir`; before there is one, what `actor.model` names: another run's, or any model."""
    trained, path = Path(config.run_dir) / ACTOR, config.actor.model.path
    for folder, given in ((trained, trained), (Path(path), None)):
        step = saved_step(folder)
        if step is not None:
            return MeasuredPolicy(given, step, "trained")
    return MeasuredPolicy(None, 0, f"of actor.model.path={path}")


@contextmanager
def policy_to_measure(config: EvaluationRun, stored: StoredModel | None) -> Iterator[MeasuredPolicy]:
    """Context with the policy of a checkpoint, in a folder of its own in `run_dir` (which the engines' nodes share);
    without a checkpoint, `measured_policy`."""
    if stored is None:
        yield measured_policy(config)
        return
    Path(config.run_dir).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="evaluated-", dir=config.run_dir) as folder:
        policy = Path(folder) / ACTOR
        stored.write(policy)
        yield MeasuredPolicy(policy, stored.checkpoint.step, f"step {stored.checkpoint.step}")
