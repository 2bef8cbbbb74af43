"""A weight-transfer backend for vLLM over gloo, for machines without GPUs: from the trainer to vLLM's workers.

Modelled on vLLM's own `nccl_engine`, both sides of it: rank 0 of the group is the trainer's rank 0, and every vLLM
worker (each rank of each engine) is one further rank. Parameters are sent whole, in the checkpoint's format and the
engine's dtype, packed into buckets; the workers load them inside vLLM's layerwise reload. `register` adds the backend
to vLLM's factories, in the trainer and in each worker.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.distributed import BroadcastOptions, ProcessGroup, Work
from vllm.distributed.utils import stateless_init_torch_distributed_process_group
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

from roles.spans import span
from roles.transfer.buckets import BucketEntry, plan_buckets

BLAME_S = 5.0
"""Seconds in which an engine's own failure is known after its connection has closed."""


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """How a worker joins the group."""

    address: str
    port: int
    rank_offset: int
    """Rank of the engine's first worker in the transfer group."""
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The parameters of one push, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """How the trainer's rank 0 opens the group."""

    backend: ClassVar[str] = "gloo"

    address: str
    world_size: int
    timeout_s: float


def _empty(bucket: Sequence[BucketEntry]) -> Tensor:
    """A new buffer (uint8, flat). Never reused: vLLM's layerwise reload keeps views until a layer is complete."""
    return torch.empty(bucket[-1].start + bucket[-1].size, dtype=torch.uint8)


def _broadcast(group: ProcessGroup, tensor: Tensor) -> Work:
    options = BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    return group.broadcast([tensor], options)


def _join(address: str, port: int, rank: int, world_size: int, timeout_s: float, **listen: Any) -> ProcessGroup:
    """The group of rank 0 (the trainer) and all workers, separate from every other group of the process."""
    timeout = timedelta(seconds=timeout_s)
    group = stateless_init_torch_distributed_process_group(
        address, port, rank, world_size, backend="gloo", timeout=timeout, **listen
    )
    assert isinstance(group, ProcessGroup)
    return group


class GlooReceiver(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """The side of a vLLM worker."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    _group: ProcessGroup | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join the group; blocks until the trainer and all other workers have joined."""
        rank = init_info.rank_offset + self.parallel_config.rank
        self._group = _join(init_info.address, init_info.port, rank, init_info.world_size, init_info.timeout_s)

    def start_weight_update(self) -> None:
        """Put the model's layers back into the checkpoint's format (on the meta device) until they are loaded."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        _forget_packed_experts(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive every bucket and load it while the next one arrives."""
        assert self._group is not None, "init_transfer_engine comes first"
        dtypes = [getattr(torch, name) for name in update_info.dtype_names]
        buckets = plan_buckets(zip(update_info.names, dtypes, update_info.shapes, strict=True))
        arriving: list[tuple[list[BucketEntry], Tensor, Work]] = []
        for bucket in buckets:
            buffer = _empty(bucket)
            arriving.append((bucket, buffer, _broadcast(self._group, buffer)))
            if len(arriving) == 2:
                self._load(*arriving.pop(0))
        for rest in arriving:
            self._load(*rest)

    def _load(self, bucket: list[BucketEntry], buffer: Tensor, work: Work) -> None:
        with span("receive bucket", bytes=len(buffer)):
            work.wait()
        with span("load bucket", tensors=len(bucket)):
            self.model.load_weights([(slot.name, slot.view(buffer)) for slot in bucket])

    def finish_weight_update(self) -> None:
        """Process the layers that loading has not completed (attention layers)."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)

    def shutdown(self) -> None:
        """Leave the group."""
        self._group = None


def _forget_packed_experts(model: nn.Module) -> None:
    """Let vLLM pack experts again after they have been loaded.

    On CPU vLLM packs the experts of a layer for its grouped products only when it makes their kernel; new weights would
    stay in the checkpoint's format and be read as if they were packed (vLLM 0.32).
    """
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if isinstance(method, UnquantizedFusedMoEMethod):
            method.moe_kernel = None


def _repack_tied_head(model: nn.Module) -> None:
    """Give the new weights to an output head that is tied to the embedding.

    On CPU vLLM multiplies by a packed copy of a weight, which it makes when a layer has been loaded. A tied head is
    never loaded, so its copy would stay that of the first weights (vLLM 0.32).
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    layers = [layer for layer in model.modules() if isinstance(layer, VocabParallelEmbedding)]
    embeddings = {id(layer.weight) for layer in layers if not isinstance(layer, ParallelLMHead)}
    for layer in layers:
        if isinstance(layer, ParallelLMHead) and id(layer.weight) in embeddings:
            layer.quant_method.process_weights_after_loading(layer)


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """The trainer's side, on rank 0 only: the other ranks only help to gather."""

    init_info_cls = GlooTrainerInitInfo

    def __init__(self, client: VLLMWeightSyncClient, source: WeightSource, group: ProcessGroup) -> None:
        super().__init__(client=client, source=source, is_sender=True)
        self._weights = source
        self._group = group

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> Self:
        """Open the group and ask the engines to join it."""
        assert source is not None and init_info.is_sender
        listener = socket.create_server((init_info.address, 0))
        port = listener.getsockname()[1]
        worker = GlooInitInfo(init_info.address, port, 1, init_info.world_size, init_info.timeout_s)
        with ThreadPoolExecutor(max_workers=1) as background:
            joining = background.submit(client.init_weight_transfer_engine, asdict(worker))
            group = _join(init_info.address, port, 0, init_info.world_size, init_info.timeout_s, listen_socket=listener)
            joining.result()
        return cls(client, source, group)

    def send_weights(self) -> None:
        """Do one push: the engines prepare, receive while we send, then verify."""
        parameters = self._weights.metadata()
        update = GlooUpdateInfo(
            names=[p.name for p in parameters],
            dtype_names=[str(p.dtype).removeprefix("torch.") for p in parameters],
            shapes=[list(p.shape) for p in parameters],
        )
        self.client.start_weight_update()
        background = ThreadPoolExecutor(max_workers=1)
        try:
            receiving = background.submit(self.client.update_weights, asdict(update))
            self._send(plan_buckets((p.name, p.dtype, p.shape) for p in parameters), receiving)
            receiving.result()
        finally:
            background.shutdown(wait=False)  # an engine that hangs must not block us
        self.client.finish_weight_update()

    def _send(self, buckets: list[list[BucketEntry]], receiving: Future[None]) -> None:
        """Fill and send the buckets; the next one is gathered while the last one is sent."""
        tensors: Iterator[tuple[str, Tensor]] = iter(self._weights)
        sent: tuple[Tensor, Work] | None = None
        for bucket in buckets:
            buffer = _empty(bucket)
            with span("fill bucket", bytes=len(buffer)):
                for slot in bucket:
                    name, tensor = next(tensors)
                    assert name == slot.name, f"the source gives {name} where its metadata says {slot.name}"
                    slot.view(buffer).copy_(tensor)
            if sent is not None:
                _wait(sent[1], receiving)
            sent = (buffer, _broadcast(self._group, buffer))
        if sent is not None:
            _wait(sent[1], receiving)
        assert next(tensors, None) is None, "the source gives more parameters than its metadata says"

    def shutdown(self) -> None:
        """Leave the group."""
        del self._group


def _wait(work: Work, receiving: Future[None]) -> None:
    """Wait for `work`, unless the receivers have failed: gloo alone would wait for its own deadline."""
    with span("send bucket"):
        while not work.is_completed():
            if receiving.done():
                receiving.result()
            time.sleep(0.0005)
    try:
        work.wait()
    except RuntimeError:  # a receiver has gone; its own call says which
        with suppress(TimeoutError):
            receiving.result(timeout=BLAME_S)
        raise


def register() -> None:
    """Add the backend `gloo` to vLLM's factories. May be called again."""
    if GlooTrainerInitInfo.backend not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(GlooTrainerInitInfo.backend, GlooReceiver)
        WeightTransferTrainerFactory.register_engine(GlooTrainerInitInfo.backend, GlooTrainer)
