"""What a user may say about where things run. Imports no engine; read by `orchestrator.config.run`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from cluster.role_table import REWARD, gpu_roles


class ClusterSection(BaseModel):
    """A part of the configuration: unknown keys are refused, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )


def _placeable(role: str) -> str:
    if role not in gpu_roles() and not re.fullmatch(rf"{REWARD}\.[a-z0-9][a-z0-9_-]*", role):
        known = ", ".join(gpu_roles())
        raise PydanticCustomError("role", "must be one of {known}, or reward.NAME of an ensemble", {"known": known})
    return role


PlacedRole = Annotated[str, AfterValidator(_placeable)]
"""A role with a model, or `reward.NAME`: one model of an ensemble."""


class GroupConfig(ClusterSection):
    """The ranks of one role."""

    ranks: int = Field(default=1, ge=1, le=10_000)
    """Processes; with ZeRO-3 the model is sharded over them."""
    threads: int = Field(default=1, ge=1, le=10_000)
    """CPU threads of each (OMP_NUM_THREADS)."""


class LocalEngines(GroupConfig):
    """The vLLM engines: `ranks` is their number."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """Processes (on GPUs: cards) of one engine, which share the model's layers."""


class LocalPlacement(ClusterSection):
    """Everything on this machine."""

    type: Literal["local"] = "local"
    """One machine."""
    actor: GroupConfig = GroupConfig()
    """Ranks that train the policy."""
    critic: GroupConfig = GroupConfig()
    """Ranks of the value model."""
    reward: GroupConfig = GroupConfig()
    """Ranks of the reward model (of `reward.type: model`)."""
    reference: GroupConfig = GroupConfig()
    """Ranks of the frozen policy."""
    judge: GroupConfig = GroupConfig()
    """The gold scorer of `evaluation` and `reward_training`."""
    rollout: LocalEngines = LocalEngines()
    """The engines that generate."""


class PoolConfig(ClusterSection):
    """Nodes that are alike."""

    nodes: int = Field(ge=1, le=10_000)
    """How many there are."""
    gpus_per_node: int = Field(ge=0, le=64)
    """Cards in each."""
    accelerator: str | None = None
    """A name in `cluster.placement.accelerators`, such as `A800-80GB`; null: any card, of `gpu_memory_gib`."""
    gpu_memory_gib: float | None = Field(default=None, gt=0, le=10_000)
    """Memory of a card, GiB; null: the accelerator's, or 80."""
    host_memory_gib: float = Field(default=1000.0, gt=0, le=1_000_000)
    """Memory of a node, GiB."""
    cpus_per_node: int = Field(default=64, ge=1, le=10_000)
    """Logical CPUs of a node."""
    price_per_hour: float | None = Field(default=None, ge=0, le=1_000_000)
    """Of one node, in any currency; null: `tetrarch plan` names no price."""


class EnginesConfig(ClusterSection):
    """vLLM engines on a group's GPUs."""

    number: int = Field(ge=1, le=10_000)
    """How many; each has its own copy of the weights."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs of one engine, all in one node."""


class PlacedGroup(ClusterSection):
    """Some GPUs and who lives there. Several roles in one group share its GPUs and take turns."""

    pool: str
    """A name in `pools`."""
    nodes: int = Field(default=1, ge=1, le=10_000)
    """On so many nodes of the pool…"""
    gpus_per_node: int = Field(ge=1, le=64)
    """… so many GPUs each; every role has one rank on each of them."""
    roles: tuple[PlacedRole, ...] = ()
    """Who has its ranks here. `reward` is also every member of an ensemble that is not named (`reward.NAME`)."""
    engines: EnginesConfig | None = None
    """vLLM engines that live here; they must fill the group's GPUs."""
    cpus_per_rank: int = Field(default=1, ge=1, le=10_000)
    """CPUs (and threads) of each rank and of each process of an engine."""


class GroupsPlacement(ClusterSection):
    """Groups of GPUs on one or several pools of nodes."""

    type: Literal["groups"]
    """Our own form."""
    pools: dict[str, PoolConfig] = Field(min_length=1)
    """Name → nodes that are alike."""
    groups: dict[str, PlacedGroup] = Field(min_length=1)
    """Name → GPUs and the roles on them."""


class OpenRlhfPlacement(ClusterSection):
    """The placement keys of OpenRLHF, in its words."""

    type: Literal["openrlhf"]
    """As in `openrlhf.cli.train_ppo_ray`."""
    actor_num_nodes: int = Field(default=1, ge=1, le=10_000)
    """Nodes of the actor."""
    actor_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the actor on each of them."""
    critic_num_nodes: int = Field(default=1, ge=0, le=10_000)
    """Nodes of the critic; 0 where the advantages need none, which is filled in."""
    critic_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the critic on each of them."""
    ref_num_nodes: int = Field(default=1, ge=0, le=10_000)
    """Nodes of the reference model; 0 (and nothing else) where it is the actor (`share_actor`), which is filled in."""
    ref_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the reference model on each of them."""
    reward_num_nodes: int = Field(default=1, ge=0, le=10_000)
    """Nodes of the reward model; 0 (and nothing else) where the reward is a function or remote, which is filled in."""
    reward_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the reward model on each of them."""
    vllm_num_engines: int = Field(default=1, ge=1, le=10_000)
    """vLLM engines; where their GPUs add up to the actor's, they share the actor's."""
    vllm_tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs of one engine."""
    colocate_all_models: bool = False
    """All four roles and the engines share the actor's GPUs."""
    colocate_actor_ref: bool = False
    """The reference shares the actor's GPUs."""
    colocate_critic_reward: bool = False
    """The reward model shares the critic's GPUs."""
    pool: PoolConfig | None = None
    """The nodes; null: as many as the groups need, each as large as the largest group's share of a node (ours, not
    OpenRLHF's)."""
    cpus_per_rank: int = Field(default=1, ge=1, le=10_000)
    """CPUs of each rank (ours, not OpenRLHF's)."""


PlacementConfig = Annotated[LocalPlacement | GroupsPlacement | OpenRlhfPlacement, Field(discriminator="type")]


class Correction(ClusterSection):
    """Measured seconds over predicted ones, by phase."""

    generate: float = Field(default=1.0, ge=0)
    """Of generation."""
    score: float = Field(default=1.0, ge=0)
    """Of the scoring passes that generation does not hide."""
    update: float = Field(default=1.0, ge=0)
    """Of both updates."""
    push: float = Field(default=1.0, ge=0)
    """Of the weights' way to the engines."""


class BesideCounted(ClusterSection):
    """GiB that the fullest card of a measured run held beside what the plan counts, by phase; negative: less."""

    generate: float = 0.0
    """CUDA graphs, for one."""
    score: float = 0.0
    """While roles score."""
    update: float = 0.0
    """While actor and critic are trained."""


class Efficiency(ClusterSection):
    """How much of the published rates a step reaches: `orchestrator/planning/efficiency.yaml`, where the sources
    are."""

    compute: float = Field(gt=0, le=1)
    """Share of the dense peak in scoring and training."""
    memory: float = Field(gt=0, le=1)
    """Share of the memory's bandwidth in decoding."""
    wire: float = Field(gt=0, le=1)
    """Share of the links' bandwidth in gathers and copies."""
    token_overhead_s: float = Field(ge=0)
    """Seconds of every decoding iteration beside the arithmetic."""
    layer_s: float = Field(default=0.0, ge=0)
    """Seconds in which the host launches a decoder layer's forward pass; fewer tokens are no faster."""
    collective_s: float = Field(default=0.0, ge=0)
    """Latency of one collective, seconds."""
    push_layer_s: float = Field(default=0.0, ge=0)
    """Seconds of handing over one layer's tensors in a push, beside the bytes."""
    network_gb_s: float = Field(gt=0)
    """Of a node, 10^9 bytes a second, one direction."""
    thread_gb_s: float = Field(gt=0)
    """Memory traffic of one CPU thread, 10^9 bytes a second."""
    host_memory_gb_s: float = Field(gt=0)
    """Memory traffic of a whole host, 10^9 bytes a second."""
    prompt_share: float = Field(default=1.0, gt=0, le=1)
    """Mean length of a prompt, as a share of the longest that the configuration allows."""
    response_share: float | None = Field(default=None, gt=0, le=1)
    """Mean length of a response, as a share of the longest that the configuration allows; null: that of
    `response_quantiles`, or half."""
    response_spread: float = Field(default=1.0, ge=0, le=10)
    """Standard deviation of the logarithm of a response's length, before the longest are cut; 0: all are alike."""
    response_quantiles: dict[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] | None = None
    """The measured shape: share of the responses → length that they do not exceed, as a share of the longest allowed.
    null: logarithms of lengths are normal, with `response_spread`."""
    correction: Correction = Correction()
    """What `tetrarch plan --calibrate` fits."""
    beside_gib: BesideCounted = BesideCounted()
    """What it fits of a card's memory."""


class Deadlines(ClusterSection):
    """Seconds after which a wait is given up with a report of who was doing what."""

    resources_s: float = Field(default=300.0, gt=0)
    """For Ray to grant the placement."""
    start_s: float = Field(default=900.0, gt=0)
    """For every rank to load its model."""
    generate_s: float = Field(default=1800.0, gt=0)
    """For the engines to answer the prompts of a step."""
    score_s: float = Field(default=1800.0, gt=0)
    """For the scoring passes of a step."""
    update_s: float = Field(default=3600.0, gt=0)
    """For all epochs of a step on actor and critic."""
    push_s: float = Field(default=600.0, gt=0)
    """For the weights to reach every engine."""
    save_s: float = Field(default=1800.0, gt=0)
    """For a checkpoint, or the final model, to be written."""
    grace_s: float = Field(default=25.0, ge=0)
    """After SIGTERM or Ctrl-C, for the update under way to end and a checkpoint to be written; whoever stops the run
    should wait longer than that before SIGKILL (schedulers give 30 s and more). 0: nothing is saved then."""
