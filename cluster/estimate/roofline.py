"""Predicted seconds: how long each role works in a PPO step. Pure.

Sizes (`cluster.estimate.memory`), a Workload and Rates flow in, seconds flow out; seconds of generation are in
`cluster.estimate.generation`. Each time is the longest of its bounds (Williams et al., "Roofline", CACM 2009):
arithmetic, the card's memory, the wire, or the host that launches kernels.
Operations of a decoder are counted as in Korthikanti et al. (arXiv 2205.05198, appendix A): two for each weight and
token, and attention over the sample's own earlier tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from cluster.config import Efficiency
from cluster.estimate.lengths import Lengths, fixed
from cluster.estimate.memory import RoleSize, optimizer_bytes
from cluster.estimate.model_size import ModelSize
from cluster.placement.accelerators import Accelerator

ADAM_BYTES = 30
"""Memory traffic of one weight in AdamW: gradient, float32 weight and two moments read, the last three and the narrow
weight written."""
GRADIENT_BYTES = 4
PUSH_PASSES = 8
"""Number of times that a card reads or writes a pushed weight: gather, cast, digest, pack, unpack, load."""
OWN_CARD_LAYER_S = 0.015
"""Most seconds to hand over the tensors of one layer where one rank holds all weights and gathers none. Measured on one
H100 over CUDA IPC, with verification and waking: 0.017 s with 17 layers of 1.2B, 0.014 s with 31 of 135M."""
LENGTH_PARTS = 32
"""Number of equal parts of the responses for which operations are counted."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What the hardware reaches per second, efficiency included: operations, or bytes."""

    compute: float
    """Operations per second of a card."""
    memory: float
    """Bytes per second of a card's memory."""
    link: float
    """Bytes per second from card to card in a node."""
    host: float
    """Bytes per second between card and host."""
    network: float
    """Bytes per second of a node's network, in one direction."""
    thread: float
    """Bytes per second of memory traffic of one CPU thread."""
    host_memory: float
    """Bytes per second of memory traffic of all threads of a host."""
    token_overhead_s: float
    """Seconds that every decoding iteration takes in addition to its arithmetic."""
    layer_s: float = 0.0
    """Seconds that the host needs to launch the forward pass of one decoder layer."""
    collective_s: float = 0.0
    """Latency of one collective, in seconds."""
    push_layer_s: float = 0.0
    """Seconds to hand over the tensors of one layer in a push, whatever their size."""
    adam_bytes: float = ADAM_BYTES
    """Memory traffic of one weight in an optimizer step."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The work of one PPO step; prompt and response tokens are means."""

    samples: int
    responses_per_prompt: int
    prompt_tokens: float
    response_tokens: float
    epochs: int
    mini_batches: int
    responses: Lengths | None = None
    """Distribution of the lengths of responses; None: all have the mean length."""

    @property
    def tokens(self) -> float:
        """Mean number of tokens of a sample."""
        return self.prompt_tokens + self.response_tokens

    @property
    def lengths(self) -> Lengths:
        """The distribution of the lengths of responses."""
        return self.responses or fixed(self.response_tokens)


def card_rates(card: Accelerator, dtype: str, efficiency: Efficiency) -> Rates:
    """The rates of a GPU."""
    giga = 1e9 * efficiency.wire
    return Rates(
        compute=card.operations_per_s(dtype) * efficiency.compute,
        memory=1e9 * card.memory_gb_s * efficiency.memory,
        link=giga * card.link_gb_s,
        host=giga * card.host_gb_s,
        network=giga * efficiency.network_gb_s,
        thread=1e9 * efficiency.thread_gb_s,
        host_memory=1e9 * efficiency.host_memory_gb_s,
        token_overhead_s=efficiency.token_overhead_s,
        layer_s=efficiency.layer_s,
        collective_s=efficiency.collective_s,
        push_layer_s=efficiency.push_layer_s,
    )


def cpu_rates(operations_per_s: float, memory_per_s: float, ranks: int, efficiency: Efficiency) -> Rates:
    """The rates of one of `ranks` processes that share a machine without GPUs, which copies `memory_per_s` bytes."""
    memory = memory_per_s / ranks
    return Rates(
        compute=operations_per_s * efficiency.compute / ranks,
        memory=memory,
        link=1e9 * efficiency.cpu.link_gb_s,
        host=memory,
        network=1e9 * efficiency.network_gb_s * efficiency.wire,
        thread=1e9 * efficiency.thread_gb_s,
        host_memory=memory_per_s,
        token_overhead_s=efficiency.token_overhead_s,
        layer_s=efficiency.cpu.layer_s,
        collective_s=efficiency.cpu.collective_s,
        push_layer_s=efficiency.cpu.push_layer_s,
        adam_bytes=efficiency.cpu.adam_bytes,
    )


def operations(model: ModelSize, tokens: float, scored: float) -> float:
    """Operations of a forward pass over one sample of `tokens` tokens, `scored` of which get logits; experts that a
    token is not sent to do not count."""
    attention = 2 * tokens * tokens * model.heads * model.head_width * model.layers
    return 2 * tokens * model.active_in_layers + attention + _head_operations(model, scored)


def _head_operations(model: ModelSize, scored: float) -> float:
    return 2 * scored * model.hidden * model.vocabulary


def score_s(role: RoleSize, work: Workload, rates: Rates) -> float:
    """Seconds of one forward pass of a role over all samples of a step."""
    passes = _micro_batches(role, work, work.samples)
    return _piped(
        _operations_of_a_rank(role, work, work.samples) / rates.compute,
        passes * _gather_s(role, rates),
        passes * _least_s(role, rates),
        role.model.layers,
    )


def update_s(role: RoleSize, work: Workload, rates: Rates, beside: Workload | None = None) -> float:
    """Seconds of all optimizer steps of a trained role in a PPO step. `beside`: what the same optimizer steps learn in
    micro-batches of their own."""
    parts = [(part, part.samples / part.mini_batches) for part in (work, beside) if part is not None]
    micro_batches = sum(_micro_batches(role, part, samples) for part, samples in parts)
    # The backward pass costs a forward one for the activations' gradients and one for the weights' (of those that are
    # trained), and recomputing the activations another; logits are always recomputed.
    learning = role.learning / role.model.parameters
    again = sum(samples / role.ranks * _head_operations(role.model, part.response_tokens) for part, samples in parts)
    again = 0.0 if role.checkpointing else again
    forward = sum(_operations_of_a_rank(role, part, samples) for part, samples in parts)
    passes = 1 if role.head_only else 3 if role.checkpointing else 2
    compute = (passes * forward + learning * forward + again) / rates.compute
    least = (passes + learning) * micro_batches * _least_s(role, rates)
    if role.stage == 3:
        # Gather weights for the forward and the backward pass, and reduce gradients, in every micro-batch.
        wire = ((1 if role.head_only else 2) + learning) * micro_batches * _gather_s(role, rates)
        once = _piped(compute, wire, least, role.model.layers)
    else:
        # Reduce gradients once, after the last micro-batch's backward pass, and gather the new weights.
        busy = max(compute, least)
        once = busy + max(2 * learning * _exchange_s(role, rates) - busy / micro_batches, 0.0)
    once += _optimizer_s(role, rates, micro_batches)
    return work.epochs * work.mini_batches * once + (2 * _asleep_bytes(role) / rates.host if role.sleep else 0.0)


def push_s(role: RoleSize, rates: Rates, *, other_nodes: bool, cards: int = 1) -> float:
    """Seconds to send the actor's weights layer by layer: gather them if they are sharded, cast, pack, send, load.

    Args:
        other_nodes: whether engines are on other nodes than the first rank, which sends to all.
        cards: number of GPUs of the sender's node, each of which has its own share of the network.
    """
    size = role.model.parameters * role.number_bytes
    gathered = _exchange_s(role, rates) if role.stage == 3 else 0.0
    sent = size / (rates.network / cards if other_nodes else rates.link)
    copied = PUSH_PASSES * size / rates.memory
    layer = rates.push_layer_s if role.ranks > 1 else min(rates.push_layer_s, OWN_CARD_LAYER_S)
    return gathered + copied + sent + (role.model.layers + 1) * layer


def _piped(compute: float, wire: float, least: float, layers: int) -> float:
    """Seconds of arithmetic and gathers one layer ahead: all but the first gather and the last arithmetic overlap.

    The result is at least `least`.
    """
    return max(compute + wire / layers, wire + compute / layers, least) if wire else max(compute, least)


def _least_s(role: RoleSize, rates: Rates) -> float:
    """Least seconds of one forward pass with few tokens: every layer is launched, and gathered if it is sharded."""
    gathered = rates.collective_s if role.stage == 3 and role.ranks > 1 else 0.0
    return role.model.layers * (rates.layer_s + gathered)


def _operations_of_a_rank(role: RoleSize, work: Workload, samples: float) -> float:
    """Operations of the busiest rank: tokens are distributed evenly, but one rank has the longest sample."""
    longest = work.lengths.at(1 - 0.5 / max(samples, 1))
    alone = operations(role.model, work.prompt_tokens + longest, longest)
    return max(samples / role.ranks * _mean_operations(role.model, work.prompt_tokens, work.lengths), alone)


@lru_cache(maxsize=256)
def _mean_operations(model: ModelSize, prompt_tokens: float, lengths: Lengths) -> float:
    """Mean operations of a sample."""
    return (
        sum(operations(model, prompt_tokens + tokens, tokens) for tokens in lengths.spread_out(LENGTH_PARTS))
        / LENGTH_PARTS
    )


def _micro_batches(role: RoleSize, work: Workload, samples: float) -> int:
    """Number of micro-batches of each rank."""
    return math.ceil(math.ceil(samples / role.ranks) / max(int(role.tokens / work.tokens), 1))


def _asleep_bytes(role: RoleSize) -> float:
    """Bytes that each rank moves for a sleeping optimizer: to the host and back once per step."""
    return optimizer_bytes(role) / role.ranks


def _gather_s(role: RoleSize, rates: Rates) -> float:
    """Seconds in which every rank gets the whole model once, layer by layer (stage 3)."""
    from_host = role.model.parameters * role.number_bytes / role.ranks / rates.host if role.offload_parameters else 0.0
    return from_host + (_exchange_s(role, rates) if role.stage == 3 else 0.0)


def _exchange_s(role: RoleSize, rates: Rates) -> float:
    """Seconds to send all weights (or gradients) once around a ring of the ranks, within and between nodes."""
    size = role.model.parameters * role.number_bytes
    within = size * (role.ranks - 1) / role.ranks / rates.link
    between = size * (role.nodes - 1) / role.nodes / rates.network
    return max(within, between)


def _optimizer_s(role: RoleSize, rates: Rates, micro_batches: int) -> float:
    """Seconds of one step of AdamW; if it is offloaded, every micro-batch fetches the gradients from the host."""
    own = role.learning / (role.ranks if role.stage else 1)
    if not role.offload_optimizer:
        return own * rates.adam_bytes / rates.memory
    neighbours = role.ranks / role.nodes
    traffic = min(role.threads * rates.thread, rates.host_memory / neighbours)
    crossings = (2 * micro_batches - 1) * GRADIENT_BYTES + role.number_bytes
    return own * (crossings / rates.host + rates.adam_bytes / traffic)
