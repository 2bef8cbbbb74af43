"""Rules of the section `profile`: the ranks that it names are there."""

from __future__ import annotations

from collections.abc import Iterator

from cluster.counts import counted
from cluster.placement.plan import RoleNeed, plan
from cluster.role_table import ROLES, base_role
from orchestrator.config.base import BaseConfig
from orchestrator.config.role_needs import ppo_roles
from orchestrator.config.run import RunConfig


def profile_rules(config: BaseConfig) -> Iterator[str]:
    """Names of ranks that no role has. A role that this command does not start, but another one that reads the same
    file, may have any number of them."""
    if config.profile is None:
        return
    made = plan(config.placement, [RoleNeed(role, gpu=True) for role in config.model_roles])
    for name in config.profile.ranks:
        role, _, number = name.rpartition(".")
        count = len(made.of(role))
        if base_role(role) not in ROLES:
            yield f"profile.ranks names {name}, but there is no role {role}; roles are {', '.join(ROLES)}"
        elif role in config.model_roles and int(number) >= count:
            last = f"{role}.{count - 1}"
            yield f"profile.ranks names {name}, but {role} has {counted(count, 'rank')}; name one up to {last}"


def ppo_profile_rules(config: RunConfig) -> Iterator[str]:
    """Ranks of roles that the run does not start, such as a critic's with group-normalised advantages. Only of PPO: the
    other stages of a file may have fewer roles than the section `profile` names."""
    starts = ppo_roles(config)
    for name in config.profile.ranks if config.profile is not None else ():
        role = name.rpartition(".")[0]
        if base_role(role) in ROLES and role not in starts:
            yield f"profile.ranks names {name}, but this run starts no {role}; its roles are {', '.join(starts)}"
