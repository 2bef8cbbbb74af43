from __future__ import annotations

import socket
from collections.abc import Sequence

import torch
from torch import nn

from roles.transfer.buckets import ALIGNMENT, plan_buckets
from roles.transfer.connect import quiet_port
from roles.zero.gather import full_parameters, layers, parameter_shapes


def test_layers_keep_the_order_and_split_at_layer_numbers() -> None:
    names = ["embed", "layers.0.q", "layers.0.k", "layers.1.q", "layers.10.q", "norm", "head"]
    assert layers(names) == [["embed"], ["layers.0.q", "layers.0.k"], ["layers.1.q"], ["layers.10.q"], ["norm", "head"]]


def buckets_of(shapes: Sequence[Sequence[int]], size: int) -> list[list[str]]:
    plan = plan_buckets(((str(i), torch.float32, shape) for i, shape in enumerate(shapes)), size)
    return [[slot.name for slot in bucket] for bucket in plan]


def test_buckets_are_filled_in_order_and_large_parameters_stand_alone() -> None:
    assert buckets_of([(4, 4), (4, 4), (4, 4), (1000,), (1,)], 2 * 64) == [["0", "1"], ["2"], ["3"], ["4"]]
    assert buckets_of([(1000,)], 16) == [["0"]]
    assert buckets_of([], 16) == []


def test_parameters_come_out_of_their_buckets_as_they_went_in() -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16(), "c": torch.randn(()), "d": torch.randn(2, 0)}
    (bucket,) = plan_buckets((name, t.dtype, tuple(t.shape)) for name, t in tensors.items())
    memory = torch.zeros(bucket[-1].start + bucket[-1].size, dtype=torch.uint8)
    for slot in bucket:
        assert slot.start % ALIGNMENT == 0
        slot.view(memory).copy_(tensors[slot.name])
    for slot in bucket:
        assert torch.equal(slot.view(memory), tensors[slot.name])


def test_full_parameters_of_an_unsharded_module_are_its_own_and_tied_ones_come_once() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    module[1].weight = module[0].weight
    assert parameter_shapes(module) == [("0.weight", (5, 4))]
    ((name, tensor),) = full_parameters(module, [["0.weight"]])
    assert name == "0.weight" and torch.equal(tensor, module[0].weight)
    assert not tensor.requires_grad


def test_the_port_of_a_meeting_is_none_that_the_kernel_gives_to_others() -> None:
    port = quiet_port()
    assert 20_000 <= port < 32_768
    with socket.create_server(("", port)):  # free now
        pass
