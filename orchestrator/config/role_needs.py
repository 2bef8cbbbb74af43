"""What the roles of a command need from the placement. A configuration flows in, RoleNeeds flow out."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.placement.plan import RoleNeed
from cluster.role_table import ENGINES, JUDGE, KEEPER, LABELLER, REWARD
from orchestrator.config.base import BaseConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.reward_training import RewardTrainingRun, SampledPairs
from orchestrator.config.run import RunConfig
from roles.config.rewards import FunctionReward, OneReward, RemoteReward

RoleNames = Mapping[str, OneReward | None]
"""Role → its scorer, if it has one."""


def scoring_roles(config: EvaluationRun) -> dict[str, OneReward | None]:
    """The rewards, and the judge of the evaluations if there is one."""
    return {**config.scorers, JUDGE: config.judge} if config.judge else {**config.scorers}


def ppo_roles(config: RunConfig) -> dict[str, OneReward | None]:
    """All roles of PPO."""
    judge = config.section(LABELLER)
    labeller = {LABELLER: judge} if isinstance(judge, FunctionReward | RemoteReward) else {}
    keepers: RoleNames = {KEEPER: None} if config.row_keepers else {}
    return {**dict.fromkeys(config.model_roles), **scoring_roles(config), **labeller, **keepers}


def reward_roles(config: RewardTrainingRun) -> list[RoleNames]:
    """The engines and the judge, if they make the pairs; the reward model has the places after them."""
    pairs = config.reward_training.pairs
    makers: list[RoleNames] = [{ENGINES: None, JUDGE: pairs.judge}] if isinstance(pairs, SampledPairs) else []
    return [*makers, {REWARD: None}]


def role_needs(config: BaseConfig, roles: RoleNames) -> list[RoleNeed]:
    """The needs of `roles`: a model computes on the run's device, everything else on CPUs."""
    workers = {
        role: scorer.workers if isinstance(scorer, FunctionReward) else 1
        for role, scorer in roles.items()
        if isinstance(scorer, (FunctionReward, RemoteReward))
    }
    if isinstance(config, RunConfig) and KEEPER in roles:
        workers[KEEPER] = config.row_keepers
    on_gpu = config.device == "cuda"
    return [RoleNeed(role, workers=workers[role]) if role in workers else RoleNeed(role, gpu=on_gpu) for role in roles]
