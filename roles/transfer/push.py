"""ZeRO-3 parameters → vLLM: the trainer's half.

The actor's module (sharded over its ranks) flows in, the weights of every engine change. `WeightPusher` uses vLLM's own
weight-transfer interface (`vllm.distributed.weight_transfer`): `nccl` and `ipc` are vLLM's backends, `gloo` is ours
(`roles.transfer.gloo`). Every push carries a version and a digest of what was sent. Each engine compares the digest
with that of the weights that it loaded, and takes the version only if they agree.

vLLM is imported only where a push is set up: it costs each process about 3 s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from roles.errors import WeightTransferError
from roles.transfer.facts import EngineClient, EngineFacts
from roles.transfer.probe import Products, trainer_products
from roles.zero.gather import full_parameters, layers, parameter_shapes, turned_weights

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import TrainerWeightTransferEngine


class WeightPusher:
    """Sends the weights of a (sharded) module to every engine. Built and called on every rank of the module's group."""

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

        `module`: a transformers causal language model; `rank`: the caller's rank in the module's group; `address`:
        where the engines reach rank 0; `timeout_s`: the longest that one collective may wait.
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
            try:
                self._trainer.send_weights()
            finally:
                self._control.complete_gathering()
        self._usable = True

    def products(self) -> Products:
        """The products that `roles.transfer.probe` compares with an engine's, in the engines' dtype. A collective."""
        from roles.transfer.checkpoint_format import CheckpointFormat

        return trainer_products(CheckpointFormat(self._module, self._groups), self._dtype, turned_weights(self._module))
