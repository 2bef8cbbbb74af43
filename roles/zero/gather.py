"""Whole parameters from their ZeRO-3 shards, under the names that they have without adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from roles.models.lora import adapted_layers, adapter_of, is_adapter, merged, plain_name
from roles.spans import span


def parameter_shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and full shapes of `module`'s parameters without adapters, tied ones once; ZeRO-3 may have sharded them."""
    shapes = []
    for name, parameter in plain_parameters(module).items():
        whole = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
        shapes.append((name, tuple(whole)))
    return shapes


def turned_weights(module: nn.Module) -> set[str]:
    """Names of the matrices that are stored as `[inputs, outputs]`: those of GPT-2 and its relatives."""
    return {plain_name(f"{name}.weight") for name, part in module.named_modules() if isinstance(part, Conv1D)}


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
    """Context with the names in `group` and their whole tensors, which are valid inside only. A collective.

    `parameters` are `plain_parameters(module)`.
    """
    import deepspeed

    adapters = adapted_layers(module) if adapted else {}
    wanted = [parameters[name] for name in group]
    beside = [parameter for name in group if name in adapters for parameter in adapter_of(adapters[name])]
    with ExitStack() as held:
        with span("gather", tensors=len(group)):
            held.enter_context(deepspeed.zero.GatheredParameters([*wanted, *beside], modifier_rank=None))
        yield (
            (name, merged(parameter.data, adapters[name]) if name in adapters else parameter.data)
            for name, parameter in zip(group, wanted, strict=True)
        )


def plain_parameters(module: nn.Module) -> dict[str, Any]:
    """Parameters by the names that they have in a model without adapters."""
    return {plain_name(name): value for name, value in module.named_parameters() if not is_adapter(name)}


def layers(names: Sequence[str]) -> list[list[str]]:
    """The names split into one group per decoder layer (`model.layers.7.…`), and groups for the names outside layers.

    A group has neighbours only: the order stays that of `names`, so flattening the groups gives `names` again.
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
