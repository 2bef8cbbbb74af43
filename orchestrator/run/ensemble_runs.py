"""The runs of `tetrarch reward`: one, or one for each member of an ensemble.

A configuration and what the folders of the members hold flow in; which of them are done, and where the others begin,
flow out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.reward_training import COMPARISONS, QUALITY, RewardTrainingRun
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.learned_data import COMPARISONS_KEY
from orchestrator.run.resuming import Resume, changed_models, changes


@dataclass(frozen=True, slots=True)
class MemberRun:
    """One training of a reward model."""

    config: RewardTrainingRun
    resume: Resume
    """Where it begins."""
    done: bool = False
    """Whether its model is there, trained with the keys and from the model of now."""
    comparisons: str | None = None
    """The hash of those that its checkpoint was trained on; None without one."""


def member_runs(config: RewardTrainingRun, resume: Resume) -> list[MemberRun]:
    """The trainings of a command. Of an ensemble that goes on, a member without a checkpoint begins anew."""
    runs = config.runs
    if runs == [config]:
        return [MemberRun(config, resume)]
    if isinstance(resume, int):
        output = config.reward_training.output
        raise ConfigError(
            f"--resume-from {resume}: an ensemble has a run for each member; say --resume, or name a member with "
            f"reward_training.ensemble.member=1 reward_training.output={output}/member-1"
        )
    return [_member_run(run) if resume else MemberRun(run, None) for run in runs]


def _member_run(run: RewardTrainingRun) -> MemberRun:
    newest = Checkpoints(Path(run.run_dir) / "checkpoints", run.checkpoint.keep).newest()
    if newest is None:
        return MemberRun(run, None)
    made = (Path(run.reward_training.output) / QUALITY).is_file()
    changed = [change.key for change in changes(newest, run) if change.key.startswith("reward_training.")]
    done = made and not changed and not changed_models(newest, run)
    return MemberRun(run, "newest", done, newest.state.get(COMPARISONS_KEY))


def sampled_comparisons(config: RewardTrainingRun) -> Path:
    """The file of the comparisons that are sampled once, and from which all members learn."""
    return Path(config.runs[0].run_dir) / COMPARISONS
