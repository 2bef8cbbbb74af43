"""Rules of the placement: every role has its GPUs exactly once, and the pools have enough of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.config import LocalPlacement
from cluster.errors import PlacementError
from cluster.placement.gpu_groups import group_of, problems
from cluster.placement.openrlhf_groups import as_groups, in_words_of
from cluster.placement.plan import RoleNeed, plan
from cluster.role_table import CRITIC, REFERENCE, REWARD, base_role, gpu_roles, openrlhf_names
from orchestrator.config.advantages import CRITIC_FREE
from orchestrator.config.base import BaseConfig
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key


def placement_rules(config: BaseConfig) -> Iterator[str]:
    """Rules of the placements `groups` and `openrlhf`; a local placement has a place for every role."""
    if isinstance(config.placement, LocalPlacement):
        return
    try:
        placement = as_groups(config.placement)
        placed = {role for group in placement.groups.values() for role in group.roles}
        found = [in_words_of(config.placement, line) for line in problems(placement)]
        if isinstance(config, RunConfig) and not found:
            found = _without_gpus(config, placed)
        yield from found
        if found:
            return
        for role in config.model_roles:
            group_of(placement, role)
        if isinstance(config, RunConfig):
            yield from _idle_gpus(config, placed)
        plan(config.placement, [RoleNeed(role, gpu=True) for role in config.model_roles])
    except PlacementError as error:
        yield str(error)


def _without_gpus(config: RunConfig, placed: set[str]) -> list[str]:
    """The first role that needs GPUs but has none in OpenRLHF's placement."""
    missing = sorted(_used(config, placed) & set(gpu_roles()) - placed)
    if config.placement.type != "openrlhf" or not missing:
        return []
    name = openrlhf_names().get(missing[0])
    key, fix = (f"{name}_num_nodes=0", "use 1 or more") if name else ("type=openrlhf", "use type: groups")
    return [f"placement.{key}, but {_says_so(config, missing[0])} needs GPUs; {fix}"]


def _idle_gpus(config: RunConfig, placed: set[str]) -> Iterator[str]:
    """Roles that have GPUs but need none."""
    theirs = openrlhf_names() if config.placement.type == "openrlhf" else {}
    for role in sorted(placed - _used(config, placed)):
        name = theirs.get(role)
        fix = (
            f"use placement.{name}_num_nodes: 0, or leave it out" if name else f"take `{role}` out of placement.groups"
        )
        yield f"{_says_so(config, role)} needs no GPUs; {fix}"


def _used(config: RunConfig, placed: set[str]) -> set[str]:
    """The roles of PPO by the names that the placement has for them."""
    return {role if role in placed else base_role(role) for role in config.model_roles}


def _says_so(config: RunConfig, role: str) -> str:
    """The key that decides whether a role needs GPUs, with its value."""
    if role == REWARD or role in config.scorers:
        return f"reward.type={config.reward.type}"
    if base_role(role) == REWARD:
        return f"reward has no member {role.removeprefix('reward.')!r} that is a model, which"
    if role == CRITIC:
        return f"ppo.advantage.type={config.ppo.advantage.type}"
    if role == REFERENCE:
        return f"reference.share_actor={str(config.reference.share_actor).lower()}"
    return f"the section {section_key(role)}" if config.section(role) else f"{section_key(role)}=null"


def without_idle_gpus(data: Any) -> Any:
    """Plain values of a file in which OpenRLHF's placement has no nodes for a reward that is no model, for a reference
    that is the actor, nor for a critic that the advantages do not need, unless the file gives them some."""
    match data:
        case {"placement": {"type": "openrlhf", **said}}:
            idle = {}
            match data:
                case {"reward": {"type": "function" | "remote" | "environment"}}:
                    idle["reward_num_nodes"] = 0
                case {"reward": {"type": "ensemble", "members": dict(members)}} if not _has_model(members):
                    idle["reward_num_nodes"] = 0
            match data:
                case {"reference": {"share_actor": True}}:
                    idle["ref_num_nodes"] = 0
            match data:
                case {"ppo": {"advantage": {"type": str(kind)}}} if kind in CRITIC_FREE:
                    idle["critic_num_nodes"] = 0
            return {**data, "placement": {"type": "openrlhf", **idle, **said}}
    return data


def _has_model(members: dict[str, Any]) -> bool:
    return any(not isinstance(member, dict) or member.get("type", "model") == "model" for member in members.values())
