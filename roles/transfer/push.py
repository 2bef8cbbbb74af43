"""ZeRO-3 parameters → vLLM: the trainer's half.

The actor's module (sharded over its ranks) flows in, the weights of every engine change. `WeightPusher` is built by
`roles.actor` once and called after every update. It drives vLLM's own weight-transfer interface
(`vllm.distributed.weight_transfer`): `nccl` and `ipc` are vLLM's backends, `gloo` is ours (`roles.transfer.gloo`).
Every push carries a version and a digest of what was sent; each engine compares it with what it was given to load
before the version counts.

vLLM is imported only where a push is set up: it costs each process about 3 s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from roles.errors import WeightTransferError
from roles.models.lora import adapted_layers, adapter_of, is_adapter, merged, plain_name
from roles.transfer.probe import Products, trainer_products

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine

TransferBackend = Literal["gloo", "nccl", "ipc"]


class EngineClient(Protocol):
    """Reaches every rollout engine at once."""

    @property
    def deadline_s(self) -> float:
        """How long it waits for an answer."""

    def call(self, method_name: str, *args: Any) -> list[Any]:
        """Call a method of `RolloutEngine` on each engine, wait, and return the answers by engine."""


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the trainer must know of one engine."""

    index: int
    """Which engine."""
    workers: int
    """Its processes: each joins the transfer group."""
    dtype: str
    """Name of the dtype of its weights; the wire has the same."""
    backend: TransferBackend


def parameter_shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and full shapes of `module`'s parameters, tied ones once, whether ZeRO-3 has sharded them or not; adapters
    are not among them."""
    shapes = []
    for name, parameter in plain_parameters(module).items():
        whole = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
        shapes.append((name, tuple(whole)))
    return shapes


def full_parameters(
    module: nn.Module, groups: Sequence[Sequence[str]], *, adapted: bool = True
) -> Iterator[tuple[str, Tensor]]:
    """Each parameter of `module` as a whole tensor, gathered from its ZeRO-3 shards a group of names at a time.

    Weights that have an adapter come merged with it, or (`adapted=False`) as they are without. A collective: every rank
    of the module's group must run through it, in the same order. A tensor must be read before the next one is asked
    for.
    """
    parameters = plain_parameters(module)
    for group in groups:
        with gathered(module, parameters, group, adapted=adapted) as tensors:
            yield from tensors


@contextmanager
def gathered(
    module: nn.Module, parameters: Mapping[str, Any], group: Sequence[str], *, adapted: bool = True
) -> Iterator[Iterator[tuple[str, Tensor]]]:
    """The names in `group` with their whole tensors; what the tensors hold is there inside only. A collective.

    `parameters` are `plain_parameters(module)`.
    """
    import deepspeed

    adapters = adapted_layers(module) if adapted else {}
    wanted = [parameters[name] for name in group]
    beside = [parameter for name in group if name in adapters for parameter in adapter_of(adapters[name])]
    with deepspeed.zero.GatheredParameters([*wanted, *beside], modifier_rank=None):
        yield (
            (name, merged(parameter.data, adapters[name]) if name in adapters else parameter.data)
            for name, parameter in zip(group, wanted, strict=True)
        )


def plain_parameters(module: nn.Module) -> dict[str, Any]:
    """By the names that they have in a model without adapters."""
    return {plain_name(name): value for name, value in module.named_parameters() if not is_adapter(name)}


def layers(names: Sequence[str]) -> list[list[str]]:
    """The names split into one group a decoder layer (`model.layers.7.…`), what is outside layers around them.

    Only neighbours share a group: the order stays that of `names`, so flattening the groups gives `names` again.
    """
    groups: list[list[str]] = []
    last: str | None = None
    for name in names:
        number = next((part for part in name.split(".") if part.isdigit()), "")
        if number != last:
            groups.append([])
        groups[-1].append(name)
        last = number
    return groups


class WeightPusher:
    """Hands the weights of a (sharded) module to every engine. Built and called on every rank of the module's group."""

    def __init__(
        self,
        module: nn.Module,
        client: EngineClient,
        *,
        rank: int,
        address: str = "127.0.0.1",
        timeout_s: float = 600.0,
    ) -> None:
        """Connect to the engines behind `client`.

        `module` is a transformers causal language model; `rank` the caller's in the module's group; `address` where the
        engines reach rank 0; `timeout_s` the longest that one collective may wait.
        """
        self._module = module
        self._groups = layers([name for name, _ in parameter_shapes(module)])
        self._usable = True
        facts: list[EngineFacts] = client.call("describe")
        self._dtype: torch.dtype = getattr(torch, facts[0].dtype)
        self._trainer: TrainerWeightTransferEngine[Any] | None = None
        if rank == 0 or facts[0].backend == "ipc":
            from roles.transfer.connect import connect

            self._trainer, self._control = connect(
                module, self._groups, client, facts, rank=rank, address=address, timeout_s=timeout_s
            )

    def push(self, version: int) -> None:
        """Send the weights as `version`. When it returns, every engine has verified them and generates with them."""
        if not self._usable:
            raise WeightTransferError(f"cannot push version {version}: an earlier push broke off; restart the engines")
        self._usable = False
        if self._trainer is None:
            for _ in full_parameters(self._module, self._groups):
                pass
        else:
            self._control.version = version
            self._trainer.send_weights()
        self._usable = True

    def products(self) -> Products:
        """What tells these weights, in the engines' dtype, from an engine's (`roles.transfer.probe`). A collective."""
        from roles.transfer.checkpoint_format import CheckpointFormat

        return trainer_products(CheckpointFormat(self._module, self._groups), self._dtype)

    def close(self) -> None:
        """Leave the transfer group."""
        self._usable = False
        if self._trainer is not None:
            self._trainer.shutdown()
