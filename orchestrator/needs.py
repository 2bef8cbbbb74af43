"""What the roles of a command ask of the placement. A RunConfig flows in, RoleNeeds flow out.

Called by `orchestrator.build`, which starts them, and by `orchestrator.planning`, which only counts.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.plan import RoleNeed
from orchestrator.config import RunConfig
from roles.config import FunctionReward, RemoteReward, RewardConfig

RoleNames = Mapping[str, RewardConfig | None]
"""Role → its scorer, where it is one."""


def scorers(config: RunConfig) -> dict[str, RewardConfig | None]:
    """The reward, unless it is the environment's, and the judge of the evaluations if there is one."""
    named = {"reward": config.reward, "judge": config.evaluation.judge}
    return {role: scorer for role, scorer in named.items() if scorer and scorer.type != "environment"}


def training(config: RunConfig) -> dict[str, RewardConfig | None]:
    """All roles of PPO."""
    return {**dict.fromkeys(config.model_roles), **scorers(config)}


def needs(config: RunConfig, roles: RoleNames) -> list[RoleNeed]:
    """A model computes on the run's device, everything else on CPUs."""
    workers = {
        role: scorer.workers if isinstance(scorer, FunctionReward) else 1
        for role, scorer in roles.items()
        if isinstance(scorer, (FunctionReward, RemoteReward))
    }
    on_gpu = config.device == "cuda"
    return [RoleNeed(role, workers=workers[role]) if role in workers else RoleNeed(role, gpu=on_gpu) for role in roles]
