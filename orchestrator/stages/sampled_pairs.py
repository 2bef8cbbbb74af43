"""Comparisons to learn from: the policy's own responses ranked by a judge, and what of them is set aside.

A configuration flows in; Preferences, split into training and held-out groups, flow out. Called by
`orchestrator.stages.reward` (pairs of a data set are read by `orchestrator.data.pairs`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from cluster.ranks.calls import wait_all
from orchestrator.config.run import RewardTrainingConfig, RunConfig, SampledPairs
from orchestrator.data.prompts import PromptSource, Questions
from orchestrator.errors import ConfigError
from orchestrator.groups.build import Models, builder
from orchestrator.groups.roles import Policy, spread
from orchestrator.report.progress import Progress
from roles.batch import Preferences
from roles.reward_model import Scorer
from roles.seeds import stable_seed


@dataclass(frozen=True, slots=True)
class Comparisons:
    """What a reward model learns from, and what it is tested on."""

    training: Preferences
    heldout: Preferences
    left_out: int
    """Groups without a preference, or longer than `max_tokens`."""


def sampled(
    config: RunConfig, pairs: SampledPairs, questions: Questions, models: Models, progress: Progress
) -> Preferences:
    """`responses_per_prompt` responses of the policy to each training prompt, ranked by the judge's score."""
    source = PromptSource(questions, config.seed)
    prompts = source.next(min(pairs.prompts or len(source), len(source)), pairs.responses_per_prompt)
    progress.status("starting an engine and the judge")
    with builder(config, {"rollout": None, "judge": pairs.judge}) as build:
        policy, judge = Policy(build.engines(models), config.deadlines), build.scorer("judge", pairs.judge)
        build.ready()
        progress.status(f"sampling {len(prompts)} responses to {len(prompts) // pairs.responses_per_prompt} prompts")
        rollouts = policy.generate(prompts, version=0)
        judged = spread(judge, Scorer.score, rollouts)
        wait_all([judged.call], config.deadlines.score_s)
        scores = judged.result(config.deadlines.score_s)
    groups = torch.arange(len(prompts)) // pairs.responses_per_prompt
    return Preferences(rollouts.token_ids, rollouts.lengths, groups, scores)


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
