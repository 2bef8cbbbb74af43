"""Where comparisons come from: a data set of pairs, or the policy's own responses ranked by a judge.

A configuration flows in; Preferences, split into training and held-out groups, flow out. Called by
`orchestrator.reward_training`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cluster.calls import wait_all
from orchestrator.build import Models, builder
from orchestrator.config import DatasetConfig, RewardTrainingConfig, RunConfig, SampledPairs
from orchestrator.errors import ConfigError
from orchestrator.groups import Policy, spread
from orchestrator.progress import Progress
from orchestrator.prompts import PromptSource, Questions, stable_seed
from orchestrator.sources import load_rows
from roles.batch import Preferences
from roles.reward import Scorer


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


def from_dataset(dataset: DatasetConfig, tokenizer: PreTrainedTokenizerBase) -> Preferences:
    """Rows with `prompt` or `messages`, `chosen` and `rejected` (texts), tokenised; EOS ends every response."""
    rows = load_rows(dataset, "reward_training.pairs.dataset")
    missing = [name for name in ("chosen", "rejected") if name not in rows.column_names]
    if missing or not {"prompt", "messages"} & set(rows.column_names):
        raise ConfigError(
            f"reward_training.pairs.dataset.path={dataset.path} has the columns {', '.join(rows.column_names)}; "
            "it needs `chosen`, `rejected`, and `prompt` or `messages`"
        )
    sequences = []
    for row in rows:
        prompt = _prompt_ids(row, tokenizer)
        for name in ("chosen", "rejected"):
            answer = tokenizer(row[name], add_special_tokens=False)["input_ids"]
            sequences.append([*prompt, *answer, tokenizer.eos_token_id])
    ranks = torch.tensor([1.0, 0.0]).repeat(len(rows))
    return _preferences(sequences, torch.arange(len(sequences)) // 2, ranks, tokenizer.pad_token_id)


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


def _prompt_ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if "messages" not in row:
        ids: list[int] = tokenizer(row["prompt"])["input_ids"]
        return ids
    text = tokenizer.apply_chat_template(row["messages"], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _preferences(sequences: list[list[int]], groups: torch.Tensor, ranks: torch.Tensor, pad: int) -> Preferences:
    lengths = torch.tensor([len(ids) for ids in sequences])
    token_ids = torch.full((len(sequences), int(lengths.max())), pad)
    for row, ids in enumerate(sequences):
        token_ids[row, : len(ids)] = torch.tensor(ids)
    return Preferences(token_ids, lengths, groups, ranks)
