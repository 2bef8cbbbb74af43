"""Which groups of comparisons are trained on, and which are set aside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.config.reward_training import RewardTrainingConfig
from orchestrator.data.comparisons import digest, keep, kept, split
from orchestrator.errors import ConfigError
from roles.batch import Preferences


def training(**changes: Any) -> RewardTrainingConfig:
    pairs = {"type": "dataset", "dataset": {"path": "x"}}
    return RewardTrainingConfig.model_validate({"output": "o", "model": {"path": "m"}, "pairs": pairs, **changes})


def ranked(groups: list[list[float]], lengths: list[int] | None = None) -> Preferences:
    """A group for each list of ranks; every row's tokens are its own number."""
    ranks = [rank for group in groups for rank in group]
    size = len(ranks)
    return Preferences(
        token_ids=torch.arange(size)[:, None].repeat(1, 8),
        lengths=torch.tensor(lengths or [8] * size),
        groups=torch.tensor([number for number, group in enumerate(groups) for _ in group]),
        ranks=torch.tensor(ranks),
        certainty=torch.ones(size),
    )


def test_groups_are_set_aside_whole_and_none_is_in_both_parts() -> None:
    preferences = ranked([[1.0, 0.0, 0.5]] * 20)
    parts = split(preferences, training(heldout_fraction=0.25), seed=3)
    aside, kept = set(parts.heldout.groups.tolist()), set(parts.training.groups.tolist())
    assert (len(aside), len(kept), aside & kept, parts.left_out) == (5, 15, set(), 0)
    assert len(parts.heldout.comparisons()) == 5 * 3
    # Ranks and tokens have stayed with their rows.
    for part in (parts.heldout, parts.training):
        assert torch.equal(part.ranks, preferences.ranks[part.token_ids[:, 0]])
        assert torch.equal(part.groups, preferences.groups[part.token_ids[:, 0]])


def test_the_seed_decides_what_is_set_aside() -> None:
    preferences = ranked([[1.0, 0.0]] * 30)
    first, again, other = (split(preferences, training(), seed).heldout.groups.tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_groups_that_say_nothing_or_are_too_long_are_left_out() -> None:
    preferences = ranked([[1.0, 1.0], [1.0, 0.0], [0.5, 0.0], [1.0, 0.0]], lengths=[8, 8, 8, 3, 3, 3, 3, 3])
    parts = split(preferences, training(max_tokens=4, heldout_fraction=0.5), seed=0)
    assert parts.left_out == 2
    assert {*parts.training.groups.tolist(), *parts.heldout.groups.tolist()} == {2, 3}


def test_too_few_groups_are_an_error() -> None:
    with pytest.raises(ConfigError, match=r"1 usable groups of 2 are too few to set heldout_fraction=0\.2 aside"):
        split(ranked([[1.0, 0.0], [2.0, 2.0]]), training(), seed=0)


def test_certain_labels_are_kept_as_they_were_before_there_were_others(tmp_path: Path) -> None:
    """Files and hashes that are written without soft labels are those of older runs, which can go on."""
    certain = ranked([[1.0, 0.0], [0.0, 1.0]])
    soft = replace(certain, certainty=torch.tensor([0.9, 0.9, 1.0, 1.0]))
    for name, preferences in (("certain", certain), ("soft", soft)):
        keep(preferences, tmp_path / name)
        assert torch.equal(kept(tmp_path / name).certainty, preferences.certainty)
    assert set(load_file(tmp_path / "certain")) == {"token_ids", "lengths", "groups", "ranks"}
    assert digest(certain) != digest(soft)


@pytest.mark.parametrize("damage", ["cut", "text", "fewer", "other shape"])
def test_kept_comparisons_that_are_damaged_are_refused_with_their_file(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "comparisons.safetensors"
    keep(ranked([[1.0, 0.0], [0.0, 1.0]]), file)
    tensors = load_file(file)
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:-1])
        case "text":
            file.write_text("{}")
        case "fewer":
            save_file({name: tensor for name, tensor in tensors.items() if name != "ranks"}, file)
        case "other shape":
            save_file(tensors | {"ranks": tensors["ranks"][1:].clone()}, file)
    with pytest.raises(ConfigError, match=rf"^{file} does not hold the comparisons .*; restore it, or remove it"):
        kept(file)
