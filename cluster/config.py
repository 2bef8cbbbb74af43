"""Where roles run and how long they are waited for: the sections `placement` and `deadlines`. Imports no engine."""

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
    """Number of processes; with ZeRO-3 the model is sharded over them."""
    threads: int = Field(default=1, ge=1, le=10_000)
    """CPU threads of each process (OMP_NUM_THREADS)."""


class LocalEngines(GroupConfig):
    """The vLLM engines: `ranks` is their number."""

    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """Number of processes (on GPUs: cards) of one engine, over which each layer of the model is split."""


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
    """Nodes of one kind."""

    nodes: int = Field(ge=1, le=10_000)
    """Number of nodes."""
    gpus_per_node: int = Field(ge=0, le=64)
    """GPUs of each node."""
    accelerator: str | None = None
    """Name of the card, such as `A800-80GB` (a wrong name lists all); null: any card with `gpu_memory_gib`."""
    gpu_memory_gib: float | None = Field(default=None, gt=0, le=10_000)
    """Memory of a card, in GiB; null: that of `accelerator`, or 80."""
    host_memory_gib: float = Field(default=1000.0, gt=0, le=1_000_000)
    """Memory of a node, in GiB."""
    cpus_per_node: int = Field(default=64, ge=1, le=10_000)
    """Logical CPUs of a node."""
    price_per_hour: float | None = Field(default=None, ge=0, le=1_000_000)
    """Price of one node per hour, in any currency; null: `tetrarch plan` names no price."""


class EnginesConfig(ClusterSection):
    """vLLM engines on a group's GPUs."""

    number: int = Field(ge=1, le=10_000)
    """Number of engines; each has its own copy of the weights."""
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs of one engine, all in one node."""


class PlacedGroup(ClusterSection):
    """Some GPUs, and the roles on them. Several roles in one group share its GPUs and take turns."""

    pool: str
    """Name of the pool, a key of `pools`."""
    nodes: int = Field(default=1, ge=1, le=10_000)
    """Number of nodes of the pool that the group uses."""
    gpus_per_node: int = Field(ge=1, le=64)
    """GPUs that the group uses on each of its nodes; every role has one rank on each GPU."""
    roles: tuple[PlacedRole, ...] = ()
    """Roles whose ranks are here. `reward` includes every member of an ensemble that no group names (`reward.NAME`)."""
    engines: EnginesConfig | None = None
    """vLLM engines on these GPUs; they must fill the group. null: none."""
    cpus_per_rank: int = Field(default=1, ge=1, le=10_000)
    """CPUs (and threads) of each rank and of each process of an engine."""


class GroupsPlacement(ClusterSection):
    """Groups of GPUs on one or several pools of nodes."""

    type: Literal["groups"]
    """Pools of nodes, and groups of GPUs on them."""
    pools: dict[str, PoolConfig] = Field(min_length=1)
    """Name of a pool → its nodes."""
    groups: dict[str, PlacedGroup] = Field(min_length=1)
    """Name of a group → its GPUs and the roles on them."""


class OpenRlhfPlacement(ClusterSection):
    """The placement keys of OpenRLHF, under OpenRLHF's names."""

    type: Literal["openrlhf"]
    """Keys as in `openrlhf.cli.train_ppo_ray`."""
    actor_num_nodes: int = Field(default=1, ge=1, le=10_000)
    """Nodes of the actor."""
    actor_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the actor on each of them."""
    critic_num_nodes: int = Field(default=1, ge=0, le=10_000)
    """Nodes of the critic. If the advantages need no critic, it is 0, also if the key is left out."""
    critic_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the critic on each of them."""
    ref_num_nodes: int = Field(default=1, ge=0, le=10_000)
    """Nodes of the reference model. With `reference.share_actor` it must be 0, and is 0 if the key is left out."""
    ref_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the reference model on each of them."""
    reward_num_nodes: int = Field(default=1, ge=0, le=10_000)
    """Nodes of the reward model. If the reward is no model it must be 0, and is 0 if the key is left out."""
    reward_num_gpus_per_node: int = Field(default=8, ge=1, le=64)
    """GPUs of the reward model on each of them."""
    vllm_num_engines: int = Field(default=1, ge=1, le=10_000)
    """Number of vLLM engines. If together they need as many GPUs as the actor, they share the actor's."""
    vllm_tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    """GPUs of one engine."""
    colocate_all_models: bool = False
    """All four roles and the engines share the actor's GPUs."""
    colocate_actor_ref: bool = False
    """The reference shares the actor's GPUs."""
    colocate_critic_reward: bool = False
    """The reward model shares the critic's GPUs."""
    colocate_engines: bool | None = None
    """The engines share the actor's GPUs; null: if together they need as many, or with `colocate_all_models`. OpenRLHF
    has no such key: there they do only with `colocate_all_models`, and not with `async_train`."""
    pool: PoolConfig | None = None
    """The nodes; null: as many as the groups need, each as large as the largest group's share of a node. OpenRLHF has
    no such key."""
    cpus_per_rank: int = Field(default=1, ge=1, le=10_000)
    """CPUs of each rank. OpenRLHF has no such key."""


PlacementConfig = Annotated[LocalPlacement | GroupsPlacement | OpenRlhfPlacement, Field(discriminator="type")]


class Correction(ClusterSection):
    """Measured seconds divided by predicted seconds, by phase."""

    generate: float = Field(default=1.0, ge=0)
    """Factor of generation."""
    score: float = Field(default=1.0, ge=0)
    """Factor of the scoring passes that still run when generation has ended."""
    update: float = Field(default=1.0, ge=0)
    """Factor of the updates of actor and critic."""
    push: float = Field(default=1.0, ge=0)
    """Factor of the weight transfer to the engines."""


class BesideCounted(ClusterSection):
    """Memory of the fullest card of a measured run less what the plan counts, in GiB, by phase."""

    generate: float = 0.0
    """While engines generate (CUDA graphs, for example)."""
    score: float = 0.0
    """While roles score."""
    update: float = 0.0
    """While actor and critic are trained."""


class CpuCosts(ClusterSection):
    """Seconds that do not depend on a model's size, on a machine without GPUs."""

    layer_s: float = Field(default=0.0, ge=0)
    """Seconds in which Python runs one decoder layer's forward pass, whatever its size."""
    collective_s: float = Field(default=0.0, ge=0)
    """Latency of one collective over gloo, seconds."""
    push_layer_s: float = Field(default=0.0, ge=0)
    """Seconds to hand over the tensors of one layer in a push, whatever their size."""
    link_gb_s: float = Field(default=0.5, gt=0)
    """What gloo moves between two processes of a machine, in 10^9 bytes per second."""
    adam_bytes: float = Field(default=30.0, gt=0)
    """Memory traffic of one weight in an optimizer step, its gradient's norm, clip and casts included."""
    gflops: dict[str, float] = {}
    """dtype → 10^9 operations per second of all cores in matrix products, as of the run that was fitted; measured when
    a plan is made for any other dtype."""
    memory_gb_s: float | None = Field(default=None, gt=0)
    """Memory traffic of all cores in that run, in 10^9 bytes per second; null: measured when a plan is made."""


class Efficiency(ClusterSection):
    """How much of the published rates a step reaches: `orchestrator/planning/efficiency.yaml`, where the sources
    are."""

    compute: float = Field(gt=0, le=1)
    """Share of a card's dense peak that scoring and training reach."""
    memory: float = Field(gt=0, le=1)
    """Share of a card's memory bandwidth that decoding reaches."""
    wire: float = Field(gt=0, le=1)
    """Share of the bandwidth of links that gathers and copies reach."""
    token_overhead_s: float = Field(ge=0)
    """Seconds that every decoding iteration takes in addition to its arithmetic."""
    layer_s: float = Field(default=0.0, ge=0)
    """Seconds that the host needs to launch the forward pass of one decoder layer: the least time of a layer."""
    collective_s: float = Field(default=0.0, ge=0)
    """Latency of one collective, seconds."""
    push_layer_s: float = Field(default=0.0, ge=0)
    """Seconds to hand over the tensors of one layer in a push, in addition to the time of their bytes."""
    cpu: CpuCosts = CpuCosts()
    """What stands for the three above without GPUs."""
    network_gb_s: float = Field(gt=0)
    """Bandwidth of a node's network in one direction, in 10^9 bytes per second."""
    thread_gb_s: float = Field(gt=0)
    """Memory traffic of one CPU thread, in 10^9 bytes per second."""
    host_memory_gb_s: float = Field(gt=0)
    """Memory traffic of a whole host, in 10^9 bytes per second."""
    prompt_share: float = Field(default=1.0, gt=0, le=1)
    """Mean length of a prompt, as a share of the longest that the configuration allows."""
    response_share: float | None = Field(default=None, gt=0, le=1)
    """Mean length of a response, as a share of the longest that the configuration allows; null: that of
    `response_quantiles`, or half."""
    response_spread: float = Field(default=1.0, ge=0, le=10)
    """Standard deviation of the logarithm of a response's length, before the limit cuts; 0: all lengths are equal."""
    response_limit: int | None = Field(default=None, gt=0)
    """The limit, in tokens, that the lengths were measured under; a configuration with another one has the same
    responses, cut elsewhere. null: lengths are shares of any limit."""
    response_quantiles: dict[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]] | None = None
    """Measured lengths: share of the responses → length that they do not exceed, as a share of the longest allowed.
    null: lengths are lognormal, with `response_spread`."""
    correction: Correction = Correction()
    """Factors of the predicted seconds, fitted by `tetrarch plan --calibrate`."""
    beside_gib: BesideCounted = BesideCounted()
    """Memory of a card that the plan does not count, fitted by `tetrarch plan --calibrate`."""


class Deadlines(ClusterSection):
    """Longest waits, in seconds. When one has passed, the run ends and reports what each rank was doing; if all late
    ranks can be replaced (`recovery`), they are, and it goes on."""

    resources_s: float = Field(default=300.0, gt=0)
    """Until Ray has granted the placement."""
    start_s: float = Field(default=900.0, gt=0)
    """Until every rank has loaded its model."""
    generate_s: float = Field(default=1800.0, gt=0)
    """Until the engines have answered the prompts of a step."""
    score_s: float = Field(default=1800.0, gt=0)
    """Until the scoring passes of a step are done."""
    update_s: float = Field(default=3600.0, gt=0)
    """Until actor and critic have done all epochs of a step."""
    push_s: float = Field(default=600.0, gt=0)
    """Until every engine has the new weights."""
    save_s: float = Field(default=1800.0, gt=0)
    """Until a checkpoint, or the final model, is written."""
    grace_s: float = Field(default=25.0, ge=0)
    """After SIGTERM or Ctrl-C: until the update under way has ended and a checkpoint is written. SIGKILL must not come
    earlier (schedulers wait 30 s and more). 0: nothing is saved."""
