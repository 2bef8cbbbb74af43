"""Configuration → plan → running role groups. The only module that knows how each role is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from cluster.placement.plan import engines_neighbours, plan, tensor_parallel_size
from cluster.ranks.calls import wait_all
from cluster.ranks.role_group import RoleGroup
from cluster.ranks.starting import progress_of_starts
from cluster.role_table import ACTOR, CRITIC, ENGINES, JUDGE, LABELLER, REFERENCE, REWARD
from cluster.runtime.ray_cluster import RayCluster
from orchestrator.config.base import BaseConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.labelling import EndpointJudge
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.role_needs import RoleNames, role_needs
from orchestrator.config.run import RunConfig
from orchestrator.config.sampling import SamplingConfig
from orchestrator.groups.imports import imports_for, rank_environment
from orchestrator.groups.policy import Policy
from orchestrator.groups.recovery import Recovery, ShowStarting, TellUser, unshown, untold, waits_for_room
from orchestrator.groups.resolved_models import Models
from orchestrator.groups.reward import Member, Reward
from orchestrator.groups.scoring import class_of
from roles.actor import Actor, LossExtra
from roles.batch import Responses, Sequences
from roles.config.models import FrozenRole, TrainedRole
from roles.config.rewards import EnsembleReward, FunctionReward, MeanScore, ModelReward, OneReward, RemoteReward
from roles.critic import Critic
from roles.models.early_end import EarlyEnd
from roles.reference import FrozenPolicy
from roles.reward_function import FunctionScorer
from roles.reward_model import RewardModel
from roles.reward_service import RemoteScorer
from roles.reward_trainer import RewardTrainer
from roles.rollout import RolloutEngine
from roles.rollout_setup import RolloutSetup, stop_token_ids
from roles.spans import take_spans
from roles.text.policy_text import PolicyText
from roles.text.tokenizer import filler
from roles.zero.setup import ModelSetup

R = TypeVar("R")
C = TypeVar("C", bound=BaseConfig, covariant=True)


class Builder(Generic[C]):
    """Starts role groups on a cluster; each starts without waiting, `ready` waits for all of them."""

    def __init__(
        self, config: C, cluster: RayCluster, tell: TellUser = untold, starting: ShowStarting = unshown
    ) -> None:
        """`tell`: shows the user a line about a failure that the run survives; `starting`: shows what each role does
        while it starts."""
        self._config, self._show = config, starting
        self.cluster = cluster
        self.recovery = Recovery(config.recovery, tell, start_s=config.deadlines.start_s)
        self._groups: list[RoleGroup[Any]] = []

    def actor(self: Builder[RunConfig], models: Models) -> RoleGroup[Actor]:
        """The training half of the policy."""
        config = self._config
        trained_steps = config.actor_steps(config.critic.warmup.max_steps)  # more if the critic's warm-up ends sooner
        setup = self.engine_setup(ACTOR, models.actor, config.actor, steps=trained_steps * config.ppo.optimizer_steps)
        setup, early = replace(setup, ema_decay=config.actor.ema_decay), self._early_end(models)
        kl, ptx, once = config.ppo.kl, config.ppo.ptx, config.actor.old_logprobs == "first_pass"
        penalty, factor = kl.estimator if kl.where == "loss" else None, ptx.coefficient if ptx else 0.0
        extra = LossExtra(config.rollout.max_response_tokens, penalty, once, factor)
        return self.start(ACTOR, Actor, (setup, config.ppo.policy, config.rollout.temperature, extra, early))

    def critic(self: Builder[RunConfig], models: Models) -> RoleGroup[Critic]:
        """The value model."""
        config = self._config
        role = config.critic.model_copy(update={"model": config.critic_model})
        setup = self.engine_setup(CRITIC, models.of[CRITIC], role, steps=config.steps * config.ppo.optimizer_steps)
        return self.start(CRITIC, Critic, (setup, config.ppo.value, config.rollout.max_response_tokens))

    def reference(self: Builder[EvaluationRun], models: Models) -> RoleGroup[FrozenPolicy]:
        """The frozen policy, on ranks of its own or on those of an actor that is not started."""
        return self.frozen(REFERENCE, models, ranks_of=self._config.reference_role)

    def frozen(self: Builder[EvaluationRun], role: str, models: Models, *, ranks_of: str) -> RoleGroup[Any]:
        """A frozen role of the table whose class is constructed as `Reference` is."""
        config = self._config
        section = config.section(role).model_copy(update={"model": config.model_of(role)})
        setup, early = self.engine_setup(ranks_of, models.of[role], section), self._early_end(models)
        return self.frozen_group(ranks_of, class_of(role), (setup, config.rollout.temperature, early))

    def _early_end(self: Builder[SamplingConfig], models: Models) -> EarlyEnd:
        """The tokens that end a response, and how many tokens must come before them."""
        return EarlyEnd(self._ends(models), self._config.rollout.min_response_tokens)

    def _ends(self: Builder[SamplingConfig], models: Models) -> tuple[int, ...]:
        return stop_token_ids(models.actor, models.tokenizer.eos_token_id, self._config.rollout.stop_token_ids)

    def reward(self: Builder[EvaluationRun], models: Models) -> Reward:
        """What scores responses: one scorer, an ensemble of scorers, or none."""
        config = self._config.reward
        members = {role: self._member(role, scorer, models) for role, scorer in self._config.scorers.items()}
        return Reward(members, config.combine if isinstance(config, EnsembleReward) else MeanScore())

    def _member(self: Builder[EvaluationRun], role: str, config: OneReward, models: Models) -> Member:
        if isinstance(config, ModelReward) and isinstance(section := self._config.section(role), TrainedRole):
            return Member(self._retrained(models.of[role], section), Sequences.of)
        if isinstance(config, ModelReward):
            setup = self.engine_setup(role, models.of[role], config)
            bridge = self.policy_text(models) if config.text_bridge else None
            group = self.frozen_group(role, RewardModel, (setup, bridge))
            return Member(group, partial(Responses.of, columns=bridge.columns) if bridge else Sequences.of)
        return self.scorer(role, config, self.policy_text(models))

    def _retrained(self: Builder[Any], folder: Path, section: TrainedRole) -> RoleGroup[RewardTrainer]:
        """The reward model of a PPO run in which it goes on learning."""
        config, settings = self._config, self._config.retraining
        setup = self.engine_setup(REWARD, folder, section, steps=config.retraining_steps)
        setup = replace(setup, freeze_backbone=settings.freeze_backbone)
        return self.start(REWARD, RewardTrainer, (setup,))

    def policy_text(self: Builder[SamplingConfig], models: Models) -> PolicyText:
        """Whose tokens the responses are, for what reads them as text."""
        config = self._config
        return PolicyText(str(models.actor), config.actor.model.trust_remote_code, config.prompts.tools)

    def judge(self: Builder[EvaluationRun], models: Models) -> Member | None:
        """The gold scorer of the evaluations, if there is one."""
        config = self._config.judge
        return self.scorer(JUDGE, config, self.policy_text(models)) if config else None

    def labeller(self: Builder[RunConfig], models: Models) -> Member | None:
        """Who scores the responses from which the reward model learns, unless an endpoint compares them."""
        judge = self._config.section(LABELLER)
        return None if judge is None or isinstance(judge, EndpointJudge) else self._member(LABELLER, judge, models)

    def scorer(self, role: str, config: FunctionReward | RemoteReward, policy: PolicyText | None = None) -> Member:
        """A reward that is not a model: a function or a service. `policy`: whose responses it scores, if known."""
        factory = FunctionScorer if isinstance(config, FunctionReward) else RemoteScorer
        arguments = (config, policy) if config.protocol == "openrlhf" else (config,)
        return Member(self.frozen_group(role, factory, arguments, distributed=False), names=True)

    def frozen_group(
        self, role: str, factory: Callable[..., R], arguments: tuple[Any, ...], *, distributed: bool = True
    ) -> RoleGroup[R]:
        """Start a group that holds no training state, which can be started again if a rank fails."""
        replaceable = self._config.recovery.frozen_failures_per_hour > 0
        group = self.start(role, factory, arguments, distributed=distributed, replaceable=replaceable)
        self.recovery.frozen[role] = group
        return group

    def reward_trainer(self: Builder[RewardTrainingRun], backbone: Path, steps: int) -> RoleGroup[RewardTrainer]:
        """The reward model that is being trained."""
        training, seed = self._config.reward_training, self._config.training_seed
        setup = self.engine_setup(REWARD, backbone, training.section, steps=steps)
        setup = replace(setup, freeze_backbone=training.freeze_backbone, seed=seed)
        return self.start(REWARD, RewardTrainer, (setup, training.pooling))

    def engines(
        self: Builder[SamplingConfig], models: Models, kind: type[Any] = RolloutEngine, *, replaceable: bool = False
    ) -> RoleGroup[Any]:
        """The vLLM engines, with the weights in `models.actor`. `kind`: the class of a rank; `replaceable`: as in
        `RoleGroup.start`."""
        config, tokenizer = self._config, models.tokenizer
        self.recovery.folders.note(ENGINES, models.actor)
        neighbours = engines_neighbours(config.placement)
        setup = RolloutSetup(
            model_path=str(models.actor),
            device=config.device,
            dtype=config.rollout.engine.dtype or config.dtype,
            seed=config.seed,
            rollout=config.rollout,
            max_model_tokens=config.longest_sample,
            pad_token_id=filler(tokenizer),
            stop_token_ids=self._ends(models),
            backend="gloo" if config.device == "cpu" else "ipc" if ACTOR in neighbours else "nccl",
            tensor_parallel_size=tensor_parallel_size(config.placement),
            trust_remote_code=config.actor.model.trust_remote_code,
            environment=config.environment,
            max_prompt_tokens=config.prompts.max_tokens,
        )
        setups = [(replace(setup, index=index),) for index in range(len(self.cluster.places(ENGINES)))]
        return self.start(ENGINES, kind, setups, distributed=False, replaceable=replaceable)

    def policy(self: Builder[SamplingConfig], models: Models) -> Policy:
        """The engines as one policy. If they share GPUs, they are up and asleep before another role loads a model
        there.

        vLLM measures the free memory of a card while it starts, and takes its share of that.
        """
        config = self._config
        sleeps = config.rollout.engine.sleep > 0
        policy = Policy(
            self.engines(models, replaceable=config.recovery.engine_failures_per_hour > 0),
            *(config.deadlines, sleeps, config.environment is not None),
            stream_samples=config.rollout.stream_samples,
            recovery=self.recovery,
        )
        if sleeps or engines_neighbours(config.placement):
            self._wait()
            policy.rest()
        return policy

    def ready(self) -> None:
        """Wait until every group that was started has built its role."""
        self._wait()
        self.recovery.folders.check()  # they may have loaded one after the other
        self.cluster.check_places(self._groups)

    def _wait(self) -> None:
        calls = [group.started for group in self._groups]
        wait_all(calls, self._config.deadlines.start_s, lambda: self._show(progress_of_starts(calls)))
        self._show({})

    def engine_setup(self, name: str, model: Path, role: FrozenRole, *, steps: int = 0) -> ModelSetup:
        """The setup of the sharded model of role `name`; a trained role takes `steps` optimizer steps."""
        assert role.model is not None
        self.recovery.folders.note(name, model)
        setup = ModelSetup(
            model_path=str(model),
            device=self._config.device,
            dtype=self._config.dtype,
            seed=self._config.seed,
            zero=role.zero,
            micro_batch_tokens=role.micro_batch_tokens,
            fused_kernels=role.fused_kernels,
            shares_card=any(place.slot.share < 1 for place in self.cluster.places(name)),
            trust_remote_code=role.model.trust_remote_code,
        )
        if not isinstance(role, TrainedRole):
            return setup
        return replace(
            setup,
            optimizer=role.optimizer,
            optimizer_steps=steps,
            lora=role.lora,
            gradient_checkpointing=role.gradient_checkpointing,
        )

    def start(
        self,
        role: str,
        factory: Callable[..., R],
        arguments: tuple[Any, ...] | list[tuple[Any, ...]],
        *,
        distributed: bool = True,
        replaceable: bool = False,
    ) -> RoleGroup[R]:
        """Start one group. `arguments`: a tuple is for every rank, a list has one tuple for each rank."""
        places = self.cluster.places(role)
        each = arguments if isinstance(arguments, list) else [arguments] * len(places)
        group = RoleGroup.start(
            *(role, factory, each, places),
            log_dir=Path(self._config.run_dir) / "logs",
            environment=rank_environment(self._config.device),
            distributed=distributed,
            replaceable=replaceable,
            inner=take_spans,
            again=partial(self.cluster.places_again, role, self.recovery.tell),
        )
        self._groups.append(group)
        return group


@contextmanager
def builder(
    config: C,  # type: ignore[misc]
    roles: RoleNames,
    tell: TellUser = untold,
    starting: ShowStarting = unshown,
) -> Iterator[Builder[C]]:
    """Context with a cluster that has room for `roles`; at its end every process is stopped. `tell`, `starting`: see
    `Builder`."""
    made = plan(config.placement, role_needs(config, roles))
    imports = imports_for(config.device, rank_environment(config.device))
    waits = waits_for_room(tell, starting)
    with RayCluster(made, deadline_s=config.deadlines.resources_s, imports=imports, waits=waits) as cluster:
        yield Builder(config, cluster, tell, starting)
