"""Run directories with checkpoints, for tests. `saved` in `conftest.py` makes one."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.loading import dump_config, load_config, load_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.run import RunConfig
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import changes, checkpoint_to_resume

ROOT = Path(__file__).resolve().parents[4]
TINY = ROOT / "configs/tiny.yaml"


class Saved:
    """A run directory with checkpoints of `configs/tiny.yaml`."""

    def __init__(self, run_dir: Path, steps: tuple[int, ...] = (2, 4)) -> None:
        self.run_dir = run_dir
        self.checkpoints = Checkpoints(run_dir / "checkpoints", keep=5)
        for step in steps:
            self.checkpoints.save(step, {"config": dump_config(self.config())}, lambda folder: None)

    def config(self, *overrides: str) -> RunConfig:
        return load_config(TINY, [f"run_dir={self.run_dir}", *overrides])

    def told(self, *overrides: str) -> list[str]:
        found = checkpoint_to_resume(self.config(*overrides), "newest")
        assert found is not None
        return [str(change) for change in changes(found, self.config(*overrides))]


REWARD = """
reward_training: {output: %s/taste, model: {path: m}, pairs: {type: sampled, judge: {path: judge.py}}}
actor: {model: {path: policy}}
prompts: {train: {path: prompts.jsonl}, max_tokens: 8}
rollout: {prompts_per_step: 2, max_response_tokens: 4}
"""


def rewarding(folder: Path, *overrides: str) -> RewardTrainingRun:
    file = folder / "reward.yaml"
    file.write_text(REWARD % folder)
    return load_root(RewardTrainingRun, file, overrides)


def rewarded(folder: Path) -> Path:
    """The run directory of a reward model with checkpoints of two steps."""
    config = rewarding(folder)
    for step in (2, 4):
        checkpoints = Checkpoints(Path(config.run_dir) / "checkpoints", keep=5)
        checkpoints.save(step, {"config": dump_config(config)}, lambda folder: None)
    return Path(config.run_dir)
