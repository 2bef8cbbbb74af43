"""Predicted bytes: what each role holds on a GPU and on its host, in each phase of a PPO step. Pure.

Model sizes and settings flow in, `Account`s (item → bytes) flow out.

Sources: ZeRO's model states (Rajbhandari et al., arXiv 1910.02054, section 3), as DeepSpeed keeps them with float32
gradients (its `estimate_zero3_model_states_mem_needs`); activations counted as in Korthikanti et al. (arXiv 2205.05198,
section 4) for a layer with RMSNorm, rotary positions and a gated MLP, with attention that keeps no score matrix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.estimate.model_size import ModelSize
from cluster.role_table import trained_roles

GIB = 2**30
REDUCE_BUCKET = 200_000_000
"""Gradient numbers collected before a reduction (`roles.zero.settings`): stage 3 holds one such buffer all the time,
also on a single rank; stages 1 and 2 hold two while they train."""
SUB_GROUP = 1_000_000_000
"""DeepSpeed's `sub_group_size`: numbers whose gradients the optimizer's step widens to float32 at a time."""
PREFETCHED_LAYERS = 2
"""Decoder layers that are gathered at a time: the one that computes, and the next one."""
LOGITS_BLOCK, LOGITS_NARROWEST = {"cpu": 1 << 22, "cuda": 1 << 25}, 64
"""Logits held at a time, by device, and fewest columns of them: as in `roles.models.scoring_head`."""
WHOLE_LOGITS = {"scored": 2, "trained": 4}
"""Copies of all logits, in the model's dtype, if an architecture changes them after its head: before and after the
change, and the gradients of both. Measured with Granite: 2.0 and 2.4 to 4.0."""
RUNTIME = 1.5 * GIB
"""Bytes of each process on a GPU: CUDA context, library workspaces and NCCL's buffers. An assumption, not a formula."""

PROCESS, ENGINE_PROCESS, SERVICES = 0.1 * GIB, 0.3 * GIB, 1.2 * GIB
"""Bytes without a GPU: private memory of a rank and of an engine; Ray, the driver, and the libraries that forked
ranks share (`cluster.runtime.fork_server`). Measured with `configs/tiny.yaml`, as proportional set sizes."""
IMPORTED = 0.25 * GIB
"""Bytes of libraries in a process that is not forked: with GPUs, and on a running Ray cluster. Measured like the
others, without the libraries of CUDA."""
SLACK = 1.1
"""Freed memory that the C library keeps, as a factor of the temporary memory. An assumption."""

MEMORY_PHASES = ("generate", "score", *(f"train {role}" for role in trained_roles()), "push")

Account = dict[str, float]
"""What is held → bytes."""


@dataclass(frozen=True, slots=True)
class RoleSize:
    """A role that holds a model under ZeRO."""

    role: str
    model: ModelSize
    ranks: int
    number_bytes: int
    """Bytes of a weight: 2 in bfloat16, 4 in float32."""
    stage: int
    trained: bool
    adapters: int | None = None
    """Trained parameters of LoRA (and a value head), beside the frozen ones; None: there is no LoRA."""
    head_only: bool = False
    """Whether only the head is trained: nothing flows back through the decoder layers."""
    averaged: bool = False
    """Whether a running mean of the weights is kept."""
    offload_optimizer: bool = False
    offload_parameters: bool = False
    sleep: bool = False
    """Whether gradients and optimizer are on the card only while the role trains."""
    checkpointing: bool = False
    fused: bool = False
    """Whether norms, rotary embedding and gated activations run as one kernel each."""
    tokens: int = 4096
    """Tokens of one micro-batch: `micro_batch_tokens`, or the longest sample if that is longer."""
    scored_share: float = 0.5
    """Share of the tokens that belong to responses, for which there are logits."""
    nodes: int = 1
    """Number of nodes over which the ranks are spread."""
    threads: int = 1
    """CPU threads of each rank."""
    device: str = "cuda"
    """`cpu` or `cuda`."""
    saved_behind: bool = False
    """Whether checkpoints are written from a copy in host memory while the run goes on."""

    @property
    def learning(self) -> int:
        """Number of parameters with gradients and optimizer states."""
        return self.model.parameters if self.adapters is None else self.adapters


def states(role: RoleSize, *, training: bool = True) -> Account:
    """Bytes that each rank keeps on its GPU: weights, gradients, optimizer; a sleeping rank keeps only weights."""
    ranks = role.ranks
    shards = {1: (1, 1, ranks), 2: (1, ranks, ranks), 3: (ranks, ranks, ranks)}.get(role.stage, (1, 1, 1))
    if not role.trained and role.stage < 3:
        shards = (1, 1, 1)
    parameters = role.model.parameters + (role.adapters or 0)
    account: Account = {"weights": 0.0 if role.offload_parameters else parameters * role.number_bytes / shards[0]}
    if role.averaged and not role.offload_parameters:
        account["mean of the weights (float32)"] = 4 * parameters / shards[0]
    if role.sleep and not training:
        return account
    if role.trained and not role.offload_optimizer:
        account["gradients (float32)"] = 4 * role.learning / shards[1]
        account["optimizer (float32 weights and moments)"] = optimizer_bytes(role) / shards[2]
    if role.trained and role.stage == 3 and role.device == "cuda":
        account["reduction bucket"] = role.number_bytes * REDUCE_BUCKET
    return account


def host_states(role: RoleSize) -> Account:
    """Bytes that each rank always holds in its host's memory: what is offloaded, and the copy of a checkpoint."""
    account = _saved_copy(role)
    if role.offload_parameters:
        account["offloaded weights"] = role.model.parameters * role.number_bytes / role.ranks
        if role.averaged:
            account["mean of the weights (float32)"] = 4 * role.model.parameters / role.ranks
    if role.trained and role.offload_optimizer:
        account["offloaded gradients (float32)"] = _offloaded_gradients(role)
        account["offloaded optimizer"] = optimizer_bytes(role) / role.ranks
    elif role.trained and role.sleep:
        account["sleeping optimizer"] = _asleep_bytes(role)
    return account


def _saved_copy(role: RoleSize) -> Account:
    """Float32 weights, two moments and the mean of the weights, while a checkpoint is written from their copy."""
    if not (role.trained and role.saved_behind):
        return {}
    mean = 4 * role.model.parameters if role.averaged else 0
    return {"copy of a checkpoint that is written": (12 * role.learning + mean) / role.ranks}


def _asleep_bytes(role: RoleSize) -> float:
    """Bytes of AdamW in pinned host memory, allocated in powers of two: one buffer per state and parameter group."""
    own = role.learning / role.ranks
    groups = math.ceil(own / SUB_GROUP)
    return groups * (optimizer_bytes(role) / role.learning / 4) * _pinned(4 * own / groups)


def _offloaded_gradients(role: RoleSize) -> float:
    """Bytes of gradients on the host. ZeRO-3 adds them up in one pinned buffer, and keeps another one for each
    parameter group, from which the optimizer reads."""
    own = role.learning / role.ranks
    if role.stage != 3:
        return 4 * own
    groups = math.ceil(own / SUB_GROUP)
    return _pinned(4 * own) + groups * _pinned(4 * own / groups)


def _pinned(size: float) -> float:
    """Bytes that torch takes for a buffer of pinned memory: a power of two (read in its source, not seen on a card)."""
    return float(2 ** math.ceil(math.log2(max(size, 1))))


def optimizer_bytes(role: RoleSize) -> float:
    """Bytes of AdamW: two moments, and float32 weights if the model's own are narrower."""
    return role.learning * (8 + (4 if role.number_bytes < 4 else 0))


def working(role: RoleSize, *, training: bool) -> Account:
    """Bytes that each rank holds on its GPU while it computes, on top of `states`."""
    model, width, tokens = role.model, role.number_bytes, role.tokens
    account: Account = {}
    if role.stage == 3 and role.ranks > 1:
        whole = min(PREFETCHED_LAYERS * model.layer + model.embedding, model.parameters)
        account["gathered layers"] = width * whole
    if training:
        account["activations"] = tokens * (_scoring_bytes(role) if role.head_only else _activation_bytes(role))
        account["head and a block of logits"] = _head_bytes(role)
        if role.stage in (1, 2) and role.device == "cuda":
            account["reduction buckets"] = 2 * role.number_bytes * REDUCE_BUCKET
        if not role.offload_optimizer:
            account["optimizer's step"] = 4 * min(SUB_GROUP, role.learning / max(role.ranks, 1))
    else:
        account["activations"] = tokens * _scoring_bytes(role)
        account["block of logits"] = _logits_bytes(role, "scored")
    return {item: size for item, size in account.items() if size}


def _logits_bytes(role: RoleSize, how: str) -> float:
    """Bytes of logits: one block as computed and two in float32; or all logits, if they are held whole."""
    scored = role.tokens * role.scored_share
    if role.model.whole_logits:
        return scored * role.model.vocabulary * role.number_bytes * WHOLE_LOGITS[how]
    columns = min(max(LOGITS_BLOCK[role.device] / scored, LOGITS_NARROWEST), role.model.vocabulary)
    return scored * columns * (role.number_bytes + 8)


def _head_bytes(role: RoleSize) -> float:
    """Bytes of the backward pass at the head: gradients of hidden states, in float32, and of a trained head."""
    if not role.model.vocabulary:
        return 0.0
    hidden = role.tokens * role.scored_share * role.model.hidden
    own = role.number_bytes * role.model.embedding if role.adapters is None else 0.0
    return _logits_bytes(role, "trained") + hidden * (4 + 2 * role.number_bytes) + own


def _scoring_bytes(role: RoleSize) -> int:
    """Bytes of activations of a pass without gradients, per token."""
    return 10 * role.model.hidden + 3 * role.number_bytes * role.model.intermediate


def _activation_bytes(role: RoleSize) -> float:
    """Bytes of activations kept for the backward pass, per token."""
    model, width = role.model, role.number_bytes
    attention = 2 * width * (model.heads * model.head_width + model.kv_width)
    if role.fused:
        # Two norms keep inputs and outputs; attention its query, key, value and output; the MLP gate, up and product.
        layer = 4 * width * model.hidden + attention + 3 * width * model.intermediate
    else:
        # Two norms keep float32 inputs and outputs and one narrow output each; attention also what was not rotated yet;
        # the MLP also the activation.
        layer = 20 * model.hidden + 2 * attention + 4 * width * model.intermediate
    return width * model.hidden * model.layers + layer if role.checkpointing else layer * model.layers


def rank_without_gpu(role: RoleSize) -> Account:
    """Most bytes that each rank holds in its host's memory. The file of the weights stays mapped beside them."""
    account = {"libraries": PROCESS, "weights' file": float(role.model.parameters * role.number_bytes), **states(role)}
    return account | _saved_copy(role) | working_without_gpu(role)


def working_without_gpu(role: RoleSize) -> Account:
    """Bytes that each rank holds in its host's memory only while it computes."""
    return {item: SLACK * size for item, size in working(role, training=role.trained).items()}
