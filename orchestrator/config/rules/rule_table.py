"""The rules of each command: a rule holds for every root that has the keys which it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.config.base import BaseConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.rules import (
    checkpoint_rules,
    evaluation_rules,
    keeper_rules,
    labelling_rules,
    memory_rules,
    model_rules,
    pair_rules,
    placement_rules,
    ppo_rules,
    profile_rules,
    retraining_rules,
    reward_rules,
    sampling_rules,
)
from orchestrator.config.run import RunConfig
from orchestrator.config.sampling import SamplingConfig

RULES: tuple[tuple[type[BaseConfig], Callable[[Any], Iterator[str]]], ...] = (
    (RunConfig, ppo_rules.batch_rules),
    (SamplingConfig, sampling_rules.response_rules),
    (SamplingConfig, sampling_rules.prompt_rules),
    (RunConfig, ppo_rules.distribution_rules),
    (RunConfig, ppo_rules.old_logprobs_rules),
    (EvaluationRun, reward_rules.conversation_rules),
    (SamplingConfig, sampling_rules.environment_rules),
    (RunConfig, ppo_rules.step_rules),
    (RunConfig, ppo_rules.advantage_rules),
    (RunConfig, model_rules.adapter_rules),
    (EvaluationRun, reward_rules.ensemble_rules),
    (RunConfig, model_rules.critic_rules),
    (RunConfig, ppo_rules.watch_rules),
    (RunConfig, ppo_rules.stop_rules),
    (EvaluationRun, evaluation_rules.set_rules),
    (EvaluationRun, evaluation_rules.sampling_rules),
    (RunConfig, retraining_rules.retraining_rules),
    (SamplingConfig, sampling_rules.engine_rules),
    (RunConfig, keeper_rules.keeper_rules),
    (BaseConfig, memory_rules.memory_rules),
    (BaseConfig, profile_rules.profile_rules),
    (RunConfig, profile_rules.ppo_profile_rules),
    (BaseConfig, checkpoint_rules.checkpoint_rules),
    (RewardTrainingRun, pair_rules.pair_rules),
    (LabellingRun, labelling_rules.labelling_rules),
)
"""(class whose keys the rule reads, rule); the rule holds for the class and every root derived from it."""


def broken_rules(config: BaseConfig) -> list[str]:
    """One line for every broken rule: key, value, fix. Empty if the configuration is sound."""
    misplaced = list(placement_rules.placement_rules(config))
    if misplaced:
        return misplaced  # the other rules need the number of ranks
    return [line for root, rule in RULES if isinstance(config, root) for line in rule(config)]
