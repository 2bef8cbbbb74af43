"""Training and held-out pairs for a reward model, from scored responses. Pure, except for the file that keeps them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from orchestrator.config.reward_training import RewardTrainingConfig
from orchestrator.data.epochs import schedule_of
from orchestrator.errors import ConfigError
from roles.batch import Preferences
from roles.durable import replace_durably
from roles.packing import balance
from roles.seeds import stable_seed

CERTAINTY = "certainty"
"""Name of a field of `Preferences`."""


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Comparisons that a reward model is trained on, and those that it is tested on."""

    training: Preferences
    heldout: Preferences
    left_out: int
    """Number of groups without a preference, or longer than `max_tokens`."""


def split(preferences: Preferences, config: RewardTrainingConfig, seed: int) -> Comparisons:
    """Leave out groups without a preference or that are too long; hold out `heldout_fraction` of the shuffled groups,
    from `heldout_from` on and then from the first."""
    groups: dict[int, list[int]] = {}
    for row, group in enumerate(preferences.groups.tolist()):
        groups.setdefault(group, []).append(row)
    ranks, lengths = preferences.ranks.tolist(), preferences.lengths.tolist()
    usable = [
        rows
        for rows in groups.values()
        if len({ranks[row] for row in rows}) > 1 and max(lengths[row] for row in rows) <= config.max_tokens
    ]
    first = round(len(usable) * config.heldout_from)
    heldout = round(len(usable) * (config.heldout_from + config.heldout_fraction)) - first  # folds share no group
    if not 0 < heldout < len(usable):
        raise ConfigError(
            f"reward_training: {len(usable)} usable groups of {len(groups)} are too few to set "
            f"heldout_fraction={config.heldout_fraction} aside; give more prompts or pairs, or raise max_tokens"
        )
    random.Random(stable_seed(seed, "preferences")).shuffle(usable)
    usable = usable[first:] + usable[:first]
    parts = [[row for rows in part for row in rows] for part in (usable[heldout:], usable[:heldout])]
    training, aside = preferences.split(parts)
    return Comparisons(training, aside, left_out=len(groups) - len(usable))


def schedule(preferences: Preferences, config: RewardTrainingConfig, seed: int) -> list[list[int]]:
    """Group numbers of each optimizer step: a fresh permutation each epoch."""
    groups = preferences.groups.unique().tolist()
    return schedule_of(groups, config.groups_per_step, config.epochs, (seed, "reward"))


def with_preference(preferences: Preferences) -> Preferences:
    """The groups in which some response is preferred."""
    compared = preferences.groups[preferences.comparisons()[:, 0]]
    return preferences.select(torch.isin(preferences.groups, compared).nonzero().flatten().tolist())


def group_shards(groups: Sequence[int], preferences: Preferences, ranks: int) -> list[list[int]]:
    """Rows of each rank: whole groups, divided by tokens."""
    rows = {group: (preferences.groups == group).nonzero().flatten().tolist() for group in groups}
    tokens = [int(preferences.lengths[rows[group]].sum()) for group in groups]
    return [[row for place in part for row in rows[groups[place]]] for part in balance(tokens, ranks)]


def digest(preferences: Preferences) -> str:
    """A hash of all tensors of the preferences."""
    return hashlib.sha256(save(_tensors(preferences))).hexdigest()


def keep(preferences: Preferences, file: Path) -> None:
    """Write the preferences to `file`, completely or not at all. Processes may do so at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_durably(file, save(_tensors(preferences)))


def kept(file: Path) -> Preferences:
    """Read the preferences that `keep` wrote; ConfigError if the file holds something else."""
    try:
        found = load_file(file)
        return Preferences(**{CERTAINTY: torch.ones(len(found["lengths"])), **found})
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file} does not hold the comparisons that a run has written ({error}); restore it, or remove it: they "
            "are sampled anew"
        ) from None


def _tensors(preferences: Preferences) -> dict[str, Tensor]:
    """Without the certainty if all labels are certain: then file and hash are those of versions without soft labels."""
    found = {field.name: getattr(preferences, field.name).contiguous() for field in fields(preferences)}
    if bool((preferences.certainty == 1).all()):
        del found[CERTAINTY]
    return found
