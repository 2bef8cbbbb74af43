"""Our extension of vLLM's workers: vLLM mixes `WeightReceiver` into its worker class (`worker_extension_cls`).

Importing this module registers the `gloo` weight-transfer backend, so that child processes of vLLM find it too.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

from roles.transfer.facts import ENGINE_NAME
from roles.transfer.gloo import register
from roles.transfer.probe import EngineProducts, engine_products
from roles.zero.digest import Digest
from roles.zero.host_heap import HEAP

register()
_shared_name = _CPUSHMDistributed.make_group_name
# By itself vLLM names the memory that an engine's processes share after the number of a file descriptor, so that two
# engines of a machine, or one and what a killed one has left, would share it.
_CPUSHMDistributed.make_group_name = staticmethod(
    lambda communicator: f"{os.environ.get(ENGINE_NAME)}-{_shared_name(communicator)}"
)


class WeightReceiver:
    """Methods that `RolloutEngine` calls on each of its workers with `collective_rpc`."""

    weight_transfer_engine: Any  # set by vLLM's worker

    def watch_weights(self) -> None:
        """From now on, add what any backend gives to the model's loader to a digest."""
        model = self.weight_transfer_engine.model
        keep_biases(model)
        digest = Digest()
        load = type(model).load_weights

        def load_weights(weights: Iterable[tuple[str, Tensor]], *args: Any, **kwargs: Any) -> Any:
            return load(model, _counted(weights, digest), *args, **kwargs)

        model.load_weights = load_weights
        self._weights_digest = digest

    def weights_received(self) -> tuple[str, list[str]]:
        """The digest since `watch_weights`, and the model's parameters that have not been loaded completely since
        then. Ends the watching. Must be called before the update is finished."""
        model = self.weight_transfer_engine.model
        del model.load_weights
        return self._weights_digest.hexdigest(), not_loaded(model)

    def weight_products(self) -> EngineProducts:
        """This worker's products, which `roles.transfer.probe` compares with the trainer's."""
        return engine_products(self.weight_transfer_engine.model)

    def give_back(self) -> None:
        """Return memory that is kept in reserve after a push (staging, copies); on a card the KV cache needs it
        next."""
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        else:
            HEAP.give_back()


def keep_biases(model: nn.Module) -> None:
    """Let a head whose bias is there load into it.

    vLLM 0.32 makes a new bias whenever a transformers model (Phi) loads one, which layerwise reload does not know of:
    the engine would go on with the old one.
    """
    for layer in model.modules():
        if hasattr(layer, "_register_bias") and layer.bias is not None:
            layer._register_bias = _nothing  # type: ignore[assignment]


def _nothing() -> None:
    """Stands for the making of a bias."""


def _counted(weights: Iterable[tuple[str, Tensor]], digest: Digest) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in weights:
        digest.add(name, tensor)
        yield name, tensor


def not_loaded(model: nn.Module) -> list[str]:
    """Parameters of which an update in progress has not brought every number, except tied ones and padding.

    vLLM's layerwise reload counts the numbers that reach each layer, and forgets the layers that are complete. A
    parameter that got nothing would keep its old values; one that got a part would hold uninitialised memory.
    """
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
    from vllm.model_executor.model_loader.reload.meta import SKIP_LOAD_TENSORS
    from vllm.model_executor.model_loader.reload.utils import get_tensor_load_numel

    incomplete: dict[str, Tensor] = {}
    whole: set[int] = set()
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        own = {key: p for key, p in layer.named_parameters(recurse=False) if key not in SKIP_LOAD_TENSORS}
        if not info.can_load():
            whole |= {p.data_ptr() for p in own.values() if p.numel()}
            continue
        named = {key for key, _ in info.loaded_weights}
        enough = info.load_numel >= sum(map(get_tensor_load_numel, own.values())) - _padding(layer, own)
        held = info.kernel_tensors[0] if info.kernel_tensors else {}
        if enough:
            whole |= {held[key].data_ptr() for key in own if key in held and held[key].numel()}
        else:
            missing = [key for key in own if key not in named] or list(own)
            incomplete |= {f"{name}.{key}": held.get(key, own[key]) for key in missing}
    return [name for name, parameter in incomplete.items() if parameter.is_meta or parameter.data_ptr() not in whole]


def _padding(layer: Any, parameters: Mapping[str, Tensor]) -> int:
    """Number of a vocabulary's parameters that no checkpoint has."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    if not isinstance(layer, VocabParallelEmbedding):
        return 0
    rows: int = layer.num_embeddings_per_partition - layer.shard_indices.num_org_elements
    return rows * sum(parameter.numel() // len(parameter) for parameter in parameters.values())
