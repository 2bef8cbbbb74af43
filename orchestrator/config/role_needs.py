"""What the roles of a command ask of the placement. A RunConfig flows in, RoleNeeds flow out."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.placement.plan import RoleNeed
from cluster.role_table import JUDGE
from orchestrator.config.run import RunConfig
from roles.config.rewards import FunctionReward, OneReward, RemoteReward

RoleNames = Mapping[str, OneReward | None]
"""Role → its scorer, where it is one."""


def scoring_roles(config: RunConfig) -> dict[str, OneReward | None]:
    """The rewards, and the judge of the evaluations if there is one."""
    judge = config.section(JUDGE)
    return {**config.scorers, JUDGE: judge} if judge else {**config.scorers}


def ppo_roles(config: RunConfig) -> dict[str, OneReward | None]:
    """All roles of PPO."""
    return {**dict.fromkeys(config.model_roles), **scoring_roles(config)}


def role_needs(config: RunConfig, roles: RoleNames) -> list[RoleNeed]:
    """A model computes on the run's device, everything else on CPUs."""
    workers = {
        role: scorer.workers if isinstance(scorer, FunctionReward) else 1
        for role, scorer in roles.items()
        if isinstance(scorer, (FunctionReward, RemoteReward))
    }
    on_gpu = config.device == "cuda"
    return [RoleNeed(role, workers=workers[role]) if role in workers else RoleNeed(role, gpu=on_gpu) for role in roles]


def section_key(role: str) -> str:
    """Where the configuration speaks of a role: `reward.members.helpful` of `reward.helpful`."""
    base, _, member = role.partition(".")
    return f"{base}.members.{member}" if member else base
