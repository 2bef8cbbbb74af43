"""What a configuration asks of a placement: which roles, where each computes, how many workers. No engine is loaded.

A RunConfig flows in, RoleNeeds flow out for `cluster.plan`. Called by `orchestrator.build` and `orchestrator.submit`.
"""

from __future__ import annotations

from collections.abc import Mapping

from cluster.plan import RoleNeed
from orchestrator.config import RunConfig
from roles.config import FunctionReward, RemoteReward, RewardConfig


def needs(config: RunConfig, roles: Mapping[str, RewardConfig | None]) -> list[RoleNeed]:
    """What each of `roles` asks of the placement."""
    workers = {
        role: scorer.workers if isinstance(scorer, FunctionReward) else 1
        for role, scorer in roles.items()
        if isinstance(scorer, (FunctionReward, RemoteReward))
    }
    on_gpu = config.device == "cuda"
    return [RoleNeed(role, workers=workers[role]) if role in workers else RoleNeed(role, gpu=on_gpu) for role in roles]


def scorers(config: RunConfig) -> dict[str, RewardConfig | None]:
    """Whoever scores responses → how."""
    judge = config.evaluation.judge
    return {"reward": config.reward, "judge": judge} if judge else {"reward": config.reward}


def training_scorers(config: RunConfig) -> dict[str, RewardConfig | None]:
    """All roles of PPO → their scorer, where they are one."""
    return {"rollout": None, "actor": None, "critic": None, "reference": None, **scorers(config)}
