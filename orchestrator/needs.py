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
    """The reward, and the judge of the evaluations if there is one."""
    judge = config.evaluation.judge
    return {"reward": config.reward, "judge": judge} if judge else {"reward": config.reward}


def training(config: RunConfig) -> dict[str, RewardConfig | None]:
    """All roles of PPO."""
    return {"rollout": None, "actor": None, "critic": None, "reference": None, **scorers(config)}


def needs(config: RunConfig, roles: RoleNames) -> list[RoleNeed]:
    """A model computes on the run's device, everything else on CPUs."""
    workers = {
        role: scorer.workers if isinstance(scorer, FunctionReward) else 1
        for role, scorer in roles.items()
        if isinstance(scorer, (FunctionReward, RemoteReward))
    }
    on_gpu = config.device == "cuda"
    return [RoleNeed(role, workers=workers[role]) if role in workers else RoleNeed(role, gpu=on_gpu) for role in roles]
