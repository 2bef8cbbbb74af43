"""A training goes on from a checkpoint with its own data alone; anything else is refused before a file changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from orchestrator.checks.preparation import (
    prepare_reward,
)
from orchestrator.config.loading import dump_config, validate_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.data.comparisons import digest, keep
from orchestrator.data.preference_pairs import Pairs
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from roles.batch import Preferences
from tests.unit.orchestrator.checks.door import PAIRS, World


def going_on(world: World, *, preferences: Preferences, step: int = 2) -> Path:
    """A run of reward training that `world.data` went on to `step`, whose comparisons were `preferences`."""
    config = validate_root(RewardTrainingRun, world.data)
    state = {"config": dump_config(config), "comparisons": digest(preferences)}
    Checkpoints(Path(config.run_dir) / "checkpoints", keep=2).save(step, state, lambda folder: None)
    return Path(config.run_dir)


def goes_on(world: World) -> None:
    prepare_reward(validate_root(RewardTrainingRun, world.data), "newest")


def test_reward_training_goes_on_with_its_own_pairs(world: World) -> None:
    pairs = world.root / "pairs.jsonl"
    pairs.write_text(PAIRS)
    source = {"type": "dataset", "dataset": {"path": str(pairs)}}
    world.data["reward_training"] |= {"pairs": source, "groups_per_step": 2}
    read = prepare_reward(validate_root(RewardTrainingRun, world.data), None)
    assert isinstance(read, Pairs)
    going_on(world, preferences=read.preferences)
    goes_on(world)
    pairs.write_text(PAIRS.replace('"chosen": "b"', '"chosen": "d"'))
    with pytest.raises(ConfigError, match="step-000002 was trained on other comparisons than there are now"):
        goes_on(world)
    pairs.write_text(PAIRS)
    going_on(world, preferences=read.preferences, step=3)
    with pytest.raises(ConfigError, match=r"is at step 3 of now 2; raise reward_training\.epochs"):
        goes_on(world)


def test_reward_training_goes_on_with_the_comparisons_that_it_sampled(world: World) -> None:
    tokens, lengths = torch.ones(10, 3, dtype=torch.long), torch.full((10,), 3)
    mine = Preferences(tokens, lengths, torch.arange(10) // 2, torch.arange(10.0), torch.ones(10))
    run_dir = going_on(world, preferences=mine, step=1)
    goes_on(world)  # they will be sampled again
    keep(mine, run_dir / "comparisons.safetensors")
    goes_on(world)
    keep(dataclasses.replace(mine, ranks=-mine.ranks), run_dir / "comparisons.safetensors")
    with pytest.raises(ConfigError, match="step-000001 was trained on other comparisons"):
        goes_on(world)
