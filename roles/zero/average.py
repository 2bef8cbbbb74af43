"""An exponential moving average of a model's weights, sharded as ZeRO shards them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Average:
    """Float32 means of the weights that this rank holds: its shards (ZeRO-3) or the whole weights.

    mean ← decay·mean + (1 - decay)·weight, starting from the initial weights (Polyak and Juditsky 1992, weighted).
    """

    def __init__(self, model: nn.Module, decay: float, device: torch.device) -> None:
        """`device`: where the ranks' collectives run; offloaded shards are on the host."""
        self._decay = decay
        self._device = device
        self._parameters: dict[str, Any] = dict(model.named_parameters())
        self._means = {name: _held(parameter).float().clone() for name, parameter in self._parameters.items()}

    def update(self) -> None:
        """Add the weights after an optimizer step to the means."""
        for name, mean in self._means.items():
            mean.lerp_(_held(self._parameters[name]).float(), 1 - self._decay)

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Each mean in its full shape and the weight's dtype. A collective in ZeRO-3: every rank must run through
        it."""
        for name, mean in self._means.items():
            parameter = self._parameters[name]
            mine = mean.to(self._device, parameter.dtype)
            if hasattr(parameter, "ds_shape"):
                shards = mine.new_empty(len(mine) * torch.distributed.get_world_size())
                torch.distributed.all_gather_into_tensor(shards, mine)
                mine = shards[: parameter.ds_numel].view(parameter.ds_shape)
            yield name, mine

    def held(self) -> Iterator[tuple[str, Any, Tensor]]:
        """Name, weight, and the mean of what this rank holds of it: flat in ZeRO-3, otherwise in the full shape."""
        return ((name, self._parameters[name], mean) for name, mean in self._means.items())


def _held(parameter: Any) -> Tensor:
    """This rank's part of a weight: flat in ZeRO-3, the whole weight otherwise."""
    held: Tensor = (parameter.ds_tensor if hasattr(parameter, "ds_tensor") else parameter).detach()
    return held
