"""Connects a trainer's rank to the engines through vLLM's weight-transfer interface.

Imports vLLM, therefore it is a module of its own: other modules import it only when a push is set up.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer.base import (
    ParamMeta,
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferUpdatePayload,
)
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

from roles.errors import WeightTransferError
from roles.transfer.checkpoint_format import CheckpointFormat
from roles.transfer.facts import EngineClient, EngineFacts
from roles.transfer.gloo import GlooTrainerInitInfo, register
from roles.zero.digest import Digest

POLL_S = 0.1


class ZeroSource(WeightSource):
    """The weights of a module (perhaps sharded by ZeRO-3), gathered layer by layer, in the format of its folder and
    the engines' dtype."""

    def __init__(self, module: nn.Module, groups: Sequence[Sequence[str]], dtype: torch.dtype) -> None:
        self._weights = CheckpointFormat(module, groups)
        self._dtype = dtype
        self.digest = Digest()
        """Digest of the latest pass."""
        self._passing: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Names, wire dtype and full shapes, in the order of iteration; gathers nothing."""
        return [ParamMeta(name, self._dtype_of(name), shape) for name, shape in self._weights.shapes.items()]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._passing = self._pass()
        return self._passing

    def complete(self) -> None:
        """Gather what a pass that broke off, or never began, has left: the other ranks of the module's group gather
        all of it."""
        for _ in self if self._passing is None else self._passing:
            pass
        self._passing = None

    def _pass(self) -> Iterator[tuple[str, Tensor]]:
        self.digest = Digest()
        for name, tensor in self._weights:
            cast = tensor.to(self._dtype_of(name))
            self.digest.add(name, cast)
            yield name, cast

    def _dtype_of(self, name: str) -> torch.dtype:
        return self._weights.dtypes.get(name, self._dtype)


class Control:
    """vLLM's `VLLMWeightSyncClient` over our `EngineClient`; adds version and digest to the end of a push."""

    def __init__(self, client: EngineClient, source: ZeroSource, engines: Sequence[int]) -> None:
        """`engines`: indices of the engines behind `client`, which may be some of them."""
        self._client = client
        self._source = source
        self._engines = engines
        self.version = 0
        """Version of the push that is going on."""
        self.refused: Exception | None = None
        """The error with which the engines refused to join; None if they joined."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Let every engine join the group; each adds its own offset to `rank_offset`."""
        try:
            self._client.call("init_weight_transfer", init_info, self._engines)
        except Exception as error:
            self.refused = error
            raise

    def complete_gathering(self) -> None:
        """After a push that broke off: do what the other ranks of the module's group wait for."""
        self._source.complete()

    def start_weight_update(self) -> None:
        """Let every engine prepare for `version`."""
        self._client.call("start_weight_update", self.version)

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Let every engine receive and load the weights."""
        self._client.call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Let every engine verify the weights that it loaded and switch to `version`."""
        self._client.call("finish_weight_update", self.version, self._source.digest.hexdigest())


def connect(
    module: nn.Module,
    groups: Sequence[Sequence[str]],
    client: EngineClient,
    facts: Sequence[EngineFacts],
    *,
    rank: int,
    address: str,
    timeout_s: float,
) -> tuple[TrainerWeightTransferEngine[Any], Control]:
    """The trainer's half of the engines' backend, ready to send, and its control plane."""
    register()
    if len({(fact.backend, fact.dtype, fact.workers) for fact in facts}) != 1:
        raise WeightTransferError(f"the engines differ in backend, dtype or size: {facts}; give all the same settings")
    source = ZeroSource(module, groups, getattr(torch, facts[0].dtype))
    control = Control(client, source, [fact.index for fact in facts])
    info = _init_info(facts, source, rank, address, timeout_s)
    background = ThreadPoolExecutor(max_workers=1)
    try:
        meeting = background.submit(WeightTransferTrainerFactory.trainer_init, info, client=control, source=source)
        while not meeting.done():
            # Without this, the trainer's side would wait for an engine that has failed until its own deadline.
            if control.refused is not None:
                raise control.refused
            wait([meeting], timeout=POLL_S)
        return meeting.result(), control
    finally:
        background.shutdown(wait=False)


def quiet_port() -> int:
    """A free port that no other process is likely to get before vLLM opens it: below the ports that the kernel
    assigns (32768 and up on Linux) and above Ray's own (10002 to 19999)."""
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with suppress(OSError), socket.create_server(("", port)):
            return port
    raise WeightTransferError("none of 100 ports between 20000 and 32767 is free; the machine runs too many servers")


def _init_info(
    facts: Sequence[EngineFacts], source: ZeroSource, rank: int, address: str, timeout_s: float
) -> TrainerInitInfo:
    world_size = 1 + sum(fact.workers for fact in facts)
    match facts[0].backend:
        case "gloo":
            return GlooTrainerInitInfo(address=address, world_size=world_size, timeout_s=timeout_s, rank=rank)
        case "nccl":
            from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

            return NCCLTrainerInitInfo(
                master_address=address, master_port=quiet_port(), world_size=world_size, rank=rank, packed=True
            )
        case "ipc":
            from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
            from vllm.distributed.weight_transfer.packed_tensor import DEFAULT_PACKED_BUFFER_SIZE_BYTES

            sizes = [prod(p.shape) * p.dtype.itemsize for p in source.metadata()]
            size = max(*sizes, min(sum(sizes), DEFAULT_PACKED_BUFFER_SIZE_BYTES))
            return IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=size)
