"""Predicted bytes: what a vLLM engine holds on its GPUs and its host, and what a push to it holds. Pure.

An EngineSize flows in, `Account`s (item → bytes) flow out.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.estimate.memory import ENGINE_PROCESS, RUNTIME, Account
from cluster.estimate.model_size import ModelSize

STAGING = 1 << 30
"""Bytes of a push that vLLM's transfer holds packed at a time, unless one weight is larger or all are fewer."""
STAGING_BUFFERS = {"ipc": 1, "nccl": 2}
"""Number of such buffers on the sender, by backend."""


@dataclass(frozen=True, slots=True)
class EngineSize:
    """One vLLM engine."""

    model: ModelSize
    number_bytes: int
    parallel: int
    """Number of GPUs of the engine."""
    utilization: float
    """Share of a GPU that the engine takes."""
    sleep: int
    """Sleep level. 0: always awake; 1: weights go to the host while others train; 2: they are dropped."""
    longest: int
    """Tokens of the longest sample."""
    number: int = 1
    """Number of engines."""
    kv_cache: float = 0.0
    """Bytes of the KV cache without a GPU."""
    max_sequences: int = 256
    """Most responses that one engine generates at once."""
    eager: bool = False
    """Whether kernels are launched one by one, without CUDA graphs."""

    @property
    def weights(self) -> float:
        """Bytes of weights on each of the engine's GPUs."""
        return self.model.parameters * self.number_bytes / self.parallel

    @property
    def kv_of_a_sample(self) -> float:
        """Bytes of the longest sample's KV cache on each GPU. If there are fewer heads than GPUs, heads are copied,
        as is the single vector per token of latent attention."""
        if self.model.latent:
            return self.model.layers * self.model.latent * self.number_bytes * self.longest
        heads = max(self.model.kv_heads / self.parallel, 1)
        return 2 * self.model.layers * heads * self.model.head_width * self.number_bytes * self.longest

    @property
    def least(self) -> float:
        """Bytes of each GPU with which the engine can just hold the longest sample. vLLM counts what its process
        takes besides as part of its share of the card."""
        return self.weights + self.kv_of_a_sample + RUNTIME

    def kv_room(self, capacity: float) -> float:
        """Bytes of KV cache on each of its GPUs (of `capacity` bytes)."""
        return self.utilization * capacity - self.weights - RUNTIME


def staging(model: ModelSize, number_bytes: int) -> float:
    """Bytes of one buffer of a push. The largest weight is the embedding."""
    return number_bytes * max(model.embedding, min(STAGING / number_bytes, model.parameters))


def engine(size: EngineSize, capacity: float, phase: str) -> Account:
    """Bytes that an engine holds on each of its GPUs (of `capacity` bytes) in a phase."""
    if size.sleep and phase not in ("generate", "push"):
        return {"engine, asleep": RUNTIME}
    if size.sleep and phase == "push":
        copies = staging(size.model, size.number_bytes)
        return {"engine's weights": size.weights, "copies of what arrives": copies, "engine, half awake": RUNTIME}
    taken = size.utilization * capacity
    return {"engine's weights": size.weights, "engine's KV cache and workspace": taken - size.weights}


def engine_host(size: EngineSize) -> Account:
    """Bytes that each process of an engine holds on its host while the engine sleeps."""
    return {"sleeping weights": size.weights} if size.sleep == 1 else {}


def engine_without_gpu(size: EngineSize) -> Account:
    """Bytes that each process of an engine holds in its host's memory; new weights arrive beside the old ones."""
    return {"libraries": ENGINE_PROCESS, "weights, old and new": 2 * size.weights, "KV cache": size.kv_cache}
