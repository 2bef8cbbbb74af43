"""A transformers model's parameters → the names and shapes of the folder that it came from.

transformers holds some weights in another form than their folders do: all experts of a layer in one tensor, or under
other names. An engine gets what `save_pretrained` would write, layer by layer, so code that reads the folder can read a
push.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from roles.errors import WeightTransferError
from roles.zero.gather import gathered, parameter_shapes, plain_parameters

CheckpointShapes = dict[str, tuple[int, ...]]


class CheckpointFormat:
    """The parameters and saved buffers of a module, by the names and in the shapes of its folder."""

    def __init__(self, module: nn.Module, groups: Sequence[Sequence[str]]) -> None:
        """`module` may be sharded and have adapters; `groups`: its parameters' names, grouped by layer."""
        _keep_used_conversions(module)
        self._module, self._groups = module, groups
        whole, buffers = dict(parameter_shapes(module)), saved_buffers(module)
        self._written = [_written(module, {name: whole[name] for name in group}) for group in groups]
        of_buffers, _ = _written(module, {name: tuple(tensor.shape) for name, tensor in buffers.items()})
        self.dtypes = {name: tensor.dtype for name, tensor in _converted(module, buffers).items()}
        """Dtypes of buffers, which are not trained; everything else is cast to the engines' dtype."""
        parts = [*(shapes for shapes, _ in self._written), of_buffers]
        self.shapes: CheckpointShapes = {name: shape for part in parts for name, shape in part.items()}
        """Name → shape, in the order of iteration."""
        counts = Counter(name for part in parts for name in part)
        twice = [name for name, parts_with_it in counts.items() if parts_with_it > 1]
        if twice:
            raise WeightTransferError(
                f"{type(module).__name__} writes {twice[0]} from several layers, and a push goes layer by layer; use "
                "another architecture"
            )

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor). A collective: every rank of the module's group must gather the same number of groups
        (`full_parameters` does too). A tensor must be read before the next one is requested."""
        parameters = plain_parameters(self._module)
        for group, (_, as_it_is) in zip(self._groups, self._written, strict=True):
            with gathered(self._module, parameters, group) as tensors:
                if as_it_is:
                    yield from tensors
                else:
                    yield from _converted(self._module, dict(tensors)).items()
        yield from _converted(self._module, saved_buffers(self._module)).items()


def saved_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that are saved in a folder, such as a router's correction bias."""
    found = {}
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def _written(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> tuple[CheckpointShapes, bool]:
    """Shapes after the conversion of tensors of `shapes`, and whether every tensor stays unchanged and in order."""
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    written = _converted(module, dict(empty))
    # Compare the tensors themselves, not names and shapes: a square one may have been transposed.
    if written.keys() == empty.keys() and all(written[name] is tensor for name, tensor in empty.items()):
        return dict(shapes), True
    return {name: tuple(tensor.shape) for name, tensor in written.items()}, False


def _converted(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(module, PreTrainedModel):
        return tensors
    converted: dict[str, Tensor] = revert_weight_conversion(module, tensors)
    return converted


def _keep_used_conversions(module: Any) -> None:
    """Forget conversions that transformers did not use when it loaded the model.

    transformers 5.19 keeps them if it sharded the model while loading; reversing them would give weights wrong names.
    """
    conversions = getattr(module, "_weight_conversions", None)
    if conversions is not None:
        module._weight_conversions = [conversion for conversion in conversions if conversion.was_used()]
