"""Seconds on paper: how long each role works in a PPO step. Pure.

Sizes (`cluster.memory`), a Workload and Rates flow in, seconds flow out; `orchestrator.timeline` puts them side by
side. Each is the longest of what bounds it (Williams et al., "Roofline", CACM 2009): arithmetic, the card's memory, or
the wire. Operations of a decoder are counted as in Korthikanti et al. (arXiv 2205.05198, appendix A): two for each
weight and token, and attention over the sample's own earlier tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.accelerators import Accelerator
from cluster.config import Efficiency
from cluster.memory import EngineSize, RoleSize, optimizer_bytes
from cluster.model_size import ModelSize

ADAM_BYTES = 30
"""Memory traffic of one weight in AdamW: gradient, float32 weight and two moments read, the last three and the narrow
weight written."""
GRADIENT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Rates:
    """What hardware does in a second, efficiency included: operations, or bytes."""

    compute: float
    """Of a card."""
    memory: float
    """Of a card."""
    link: float
    """Card to card in a node."""
    host: float
    """Card to host."""
    network: float
    """Of a node."""
    thread: float
    """Memory traffic of a CPU thread."""
    host_memory: float
    """Memory traffic of all of a host's threads."""
    token_overhead_s: float


@dataclass(frozen=True, slots=True)
class Workload:
    """One PPO step; lengths are means."""

    samples: int
    responses_per_prompt: int
    prompt_tokens: float
    response_tokens: float
    epochs: int
    mini_batches: int

    @property
    def tokens(self) -> float:
        """Of a sample."""
        return self.prompt_tokens + self.response_tokens


def card_rates(card: Accelerator, efficiency: Efficiency) -> Rates:
    """Of a GPU."""
    giga = 1e9 * efficiency.wire
    return Rates(
        compute=1e12 * card.tflops * efficiency.compute,
        memory=1e9 * card.memory_gb_s * efficiency.memory,
        link=giga * card.link_gb_s,
        host=giga * card.host_gb_s,
        network=giga * efficiency.network_gb_s,
        thread=1e9 * efficiency.thread_gb_s,
        host_memory=1e9 * efficiency.host_memory_gb_s,
        token_overhead_s=efficiency.token_overhead_s,
    )


def cpu_rates(operations_per_s: float, ranks: int, efficiency: Efficiency) -> Rates:
    """Of one of `ranks` processes that share a machine without GPUs."""
    memory = 1e9 * efficiency.host_memory_gb_s / ranks
    return Rates(
        compute=operations_per_s * efficiency.compute / ranks,
        memory=memory,
        link=memory,
        host=memory,
        network=1e9 * efficiency.network_gb_s * efficiency.wire,
        thread=1e9 * efficiency.thread_gb_s,
        host_memory=memory * ranks,
        token_overhead_s=efficiency.token_overhead_s,
    )


def operations(model: ModelSize, tokens: float, scored: float) -> float:
    """Of a forward pass over one sample of `tokens` tokens, `scored` of which get logits; experts that a token is not
    sent to cost nothing."""
    attention = 2 * tokens * tokens * model.heads * model.head_width * model.layers
    return 2 * tokens * model.active_in_layers + attention + _head_operations(model, scored)


def _head_operations(model: ModelSize, scored: float) -> float:
    return 2 * scored * model.hidden * model.vocabulary


def score_s(role: RoleSize, work: Workload, rates: Rates) -> float:
    """One forward pass of a role over all samples of a step."""
    compute = _operations_of_a_rank(role, work, work.samples) / rates.compute
    return max(compute, _micro_batches(role, work, work.samples) * _gather_s(role, rates))


def update_s(role: RoleSize, work: Workload, rates: Rates) -> float:
    """All optimizer steps of a trained role in a PPO step."""
    samples = work.samples / work.mini_batches
    micro_batches = _micro_batches(role, work, samples)
    # The backward pass costs a forward one for the activations' gradients and one for the weights' (of those that are
    # trained), and recomputing the activations another; logits are always recomputed.
    learning = role.learning / role.model.parameters
    again = 0.0 if role.checkpointing else samples / role.ranks * _head_operations(role.model, work.response_tokens)
    forward = _operations_of_a_rank(role, work, samples)
    compute = ((3 if role.checkpointing else 2) * forward + learning * forward + again) / rates.compute
    # Weights for the forward and the backward pass, and gradients: stage 3 for every micro-batch, others at the end.
    whole = _gather_s(role, rates) if role.stage == 3 else _exchange_s(role, rates)
    wire = (2 + learning) * micro_batches * whole if role.stage == 3 else 2 * learning * whole
    once = max(compute, wire) + _optimizer_s(role, rates, micro_batches)
    return work.epochs * work.mini_batches * once + (2 * _asleep_bytes(role) / rates.host if role.sleep else 0.0)


def generate_s(engine: EngineSize, work: Workload, rates: Rates, room: float) -> float:
    """Every engine answers its share; `room`: bytes for the KV cache on each of its GPUs."""
    model, parallel = engine.model, engine.parallel
    samples = math.ceil(work.samples / engine.number)
    kv_of_a_token = engine.kv_of_a_sample / engine.longest
    at_once = min(samples, engine.max_sequences, max(int(room / (kv_of_a_token * work.tokens)), 1))
    prefilled = samples / work.responses_per_prompt
    prefill = prefilled * operations(model, work.prompt_tokens, 0) / parallel / rates.compute
    weights = engine.weights * model.read_parameters(at_once) / model.parameters
    read = weights + at_once * kv_of_a_token * (work.prompt_tokens + work.response_tokens / 2)
    arithmetic = at_once * operations(model, 1, 1) / parallel
    # Two sums over a tensor-parallel group in every layer; a ring passes almost everything twice.
    summed = 4 * model.layers * at_once * model.hidden * engine.number_bytes * (parallel - 1) / parallel
    iteration = max(read / rates.memory, arithmetic / rates.compute) + summed / rates.link + rates.token_overhead_s
    return prefill + iteration * work.response_tokens * max(samples / at_once, 1)


def push_s(role: RoleSize, rates: Rates, *, other_nodes: bool) -> float:
    """The actor's weights: gathered layer by layer where they are sharded, then sent to the engines."""
    size = role.model.parameters * role.number_bytes
    return (_exchange_s(role, rates) if role.stage == 3 else 0.0) + size / (
        rates.network if other_nodes else rates.link
    )


def _operations_of_a_rank(role: RoleSize, work: Workload, samples: float) -> float:
    return samples / role.ranks * operations(role.model, work.tokens, work.response_tokens)


def _micro_batches(role: RoleSize, work: Workload, samples: float) -> int:
    """Of each rank."""
    return math.ceil(math.ceil(samples / role.ranks) / max(int(role.tokens / work.tokens), 1))


def _asleep_bytes(role: RoleSize) -> float:
    """Of each rank: the optimizer, to the host and back once a step."""
    return optimizer_bytes(role) / role.ranks


def _gather_s(role: RoleSize, rates: Rates) -> float:
    """Stage 3: every rank gets the whole model once, layer by layer."""
    from_host = role.model.parameters * role.number_bytes / role.ranks / rates.host if role.offload_parameters else 0.0
    return from_host + (_exchange_s(role, rates) if role.stage == 3 else 0.0)


def _exchange_s(role: RoleSize, rates: Rates) -> float:
    """All weights (or gradients) once through a ring of the ranks: within nodes, and between them."""
    size = role.model.parameters * role.number_bytes
    within = size * (role.ranks - 1) / role.ranks / rates.link
    between = size * (role.nodes - 1) / role.nodes / rates.network
    return max(within, between)


def _optimizer_s(role: RoleSize, rates: Rates, micro_batches: int) -> float:
    """One step of AdamW; offloaded, gradients wait on the host and are fetched for every micro-batch's sum."""
    own = role.learning / (role.ranks if role.stage else 1)
    if not role.offload_optimizer:
        return own * ADAM_BYTES / rates.memory
    neighbours = role.ranks / role.nodes
    traffic = min(role.threads * rates.thread, rates.host_memory / neighbours)
    crossings = (2 * micro_batches - 1) * GRADIENT_BYTES + role.number_bytes
    return own * (crossings / rates.host + ADAM_BYTES / traffic)
