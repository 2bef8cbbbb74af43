"""Scored responses → pairs to train a reward model on, and pairs held out. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from orchestrator.config.reward_training import RewardTrainingConfig
from orchestrator.errors import ConfigError
from roles.batch import Preferences
from roles.seeds import stable_seed


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What a reward model learns from, and what it is tested on."""

    training: Preferences
    heldout: Preferences
    left_out: int
    """Groups without a preference, or longer than `max_tokens`."""


def split(preferences: Preferences, config: RewardTrainingConfig, seed: int) -> Comparisons:
    """Leave out groups that say nothing or are too long; set `heldout_fraction` of the groups aside."""
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(preferences.groups.tolist()):
        groups.setdefault(group, []).append(row)
    ranks, lengths = preferences.ranks.tolist(), preferences.lengths.tolist()
    usable = [
        rows
        for rows in groups.values()
        if len({ranks[row] for row in rows}) > 1 and max(lengths[row] for row in rows) <= config.max_tokens
    ]
    heldout = round(len(usable) * config.heldout_fraction)
    if not 0 < heldout < len(usable):
        raise ConfigError(
            f"reward_training: {len(usable)} usable groups of {len(groups)} are too few to set "
            f"heldout_fraction={config.heldout_fraction} aside; give more prompts or pairs, or raise max_tokens"
        )
    random.Random(stable_seed(seed, "preferences")).shuffle(usable)
    parts = [[row for rows in part for row in rows] for part in (usable[heldout:], usable[:heldout])]
    training, aside = preferences.split(parts)
    return Comparisons(training, aside, left_out=len(groups) - len(usable))
