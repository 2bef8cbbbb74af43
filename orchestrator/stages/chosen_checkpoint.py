"""Which checkpoint of a run is meant: a step, the best by its evaluation, or the newest. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orchestrator.errors import ConfigError
from orchestrator.ppo.gold_stop import best_steps
from orchestrator.report.run_files import RunRecord, read_record
from orchestrator.run.checkpoint import Checkpoint, Checkpoints, checkpoint_in, damage
from orchestrator.stages.dpo import PreferenceTraining
from orchestrator.stages.reward_training import RewardTraining
from orchestrator.stages.scheduled_stage import quality_of
from orchestrator.stages.sft import SupervisedTraining

QUALITIES = tuple(stage.quality_metric for stage in (RewardTraining, SupervisedTraining, PreferenceTraining))


def checkpoint_at(folder: Path) -> Checkpoint:
    """The checkpoint in a folder; ConfigError if it is not whole."""
    found = checkpoint_in(folder)
    if found is None:
        why = damage(folder) if folder.is_dir() else "there is no such folder"
        raise ConfigError(f"{folder} is no whole checkpoint: {why}; name a folder such as RUN/checkpoints/step-000010")
    return found


def chosen_checkpoint(run_dir: Path, step: int | None = None, *, best: bool = False) -> Checkpoint:
    """The checkpoint of a step; or (`best`) the one with the best evaluation; or the newest."""
    checkpoints = Checkpoints(run_dir / "checkpoints", keep=1)
    step = _best(run_dir, checkpoints.steps()) if best else step
    found = checkpoints.newest() if step is None else checkpoints.of_step(step)
    if found is None:
        steps = ", ".join(map(str, checkpoints.steps()))
        which = "no whole checkpoint" if step is None else f"no whole checkpoint of step {step}"
        raise ConfigError(f"{run_dir} holds {which}; " + (f"it has those of {steps}" if steps else "name a run_dir"))
    return found


def _best(run_dir: Path, steps: list[int]) -> int:
    """The step with the best evaluation, of those in `steps`."""
    try:
        scores = scores_of(read_record(run_dir))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    found = best_steps({step: score for step, score in scores.items() if step in steps}, 1)
    if not found:
        measured = f"its evaluations are of step {', '.join(map(str, sorted(scores)))}" if scores else "it has none"
        raise ConfigError(
            f"--best: no evaluation of {run_dir} has a whole checkpoint ({measured}); say --step, or have the run keep "
            "them (checkpoint.keep_best)"
        )
    return found[0]


def scores_of(record: RunRecord) -> Mapping[int, float]:
    """Step → score of its evaluation, higher is better."""
    if record.evaluations:
        return {found.step: found.score for found in record.evaluations}
    scored = ((int(line["step"]), quality_of(line, name)) for line in record.metrics for name in QUALITIES)
    return {step: score for step, score in scored if score is not None}
