"""The role groups of PPO and of an evaluation: a configuration flows in, running groups flow out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.ranks.role_group import RoleGroup
from cluster.role_table import ENGINES, KEEPER
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.role_needs import ppo_roles, scoring_roles
from orchestrator.config.run import RunConfig
from orchestrator.groups.build import builder
from orchestrator.groups.recovery import ShowStarting, TellUser, unshown, untold
from orchestrator.groups.resolved_models import Models
from orchestrator.groups.scoring import EvaluationRoles, Roles, class_of


@contextmanager
def training_roles(
    config: RunConfig, models: Models, tell: TellUser = untold, starting: ShowStarting = unshown
) -> Iterator[Roles]:
    """Context with all roles of PPO, started at the same time, and the weight transfer connected. `tell`, `starting`:
    see `Builder`."""
    with builder(config, ppo_roles(config), tell, starting) as build:
        policy = build.policy(models)
        actor = build.actor(models)
        critic = build.critic(models) if config.ppo.uses_critic else None
        reference: RoleGroup[Any] = actor if config.reference.share_actor else build.reference(models)
        roles = Roles(
            cluster=build.cluster,
            policy=policy,
            reward=build.reward(models),
            reference=reference,
            judge=build.judge(models),
            deadlines=config.deadlines,
            actor=actor,
            critic=critic,
            labeller=build.labeller(models),
            recomputes=config.actor.old_logprobs == "recompute",
            keepers=build.start(KEEPER, class_of(KEEPER), (), distributed=False) if config.row_keepers else None,
            frozen={role: build.frozen(role, models, ranks_of=role) for role in config.other_frozen_roles},
        )
        build.ready()
        starting({"rollout": "connecting to the actor, which sends the weights"})
        policy.connect(actor)
        starting({})
        yield roles


@contextmanager
def evaluation_roles(
    config: EvaluationRun, models: Models, tell: TellUser = untold, starting: ShowStarting = unshown
) -> Iterator[EvaluationRoles]:
    """Context with the roles that measure the policy in `models.actor`. `tell`, `starting`: see `Builder`."""
    needed = {ENGINES: None, config.reference_role: None, **scoring_roles(config)}
    with builder(config, needed, tell, starting) as build:
        roles = EvaluationRoles(
            cluster=build.cluster,
            policy=build.policy(models),
            reward=build.reward(models),
            reference=build.reference(models),
            judge=build.judge(models),
            deadlines=config.deadlines,
        )
        build.ready()
        yield roles
