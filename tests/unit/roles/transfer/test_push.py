from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import roles.transfer.connect
from roles.errors import WeightTransferError
from roles.transfer.buckets import ALIGNMENT, plan_buckets
from roles.transfer.checkpoint_format import CheckpointFormat
from roles.transfer.connect import Control, ZeroSource, quiet_port
from roles.transfer.facts import EngineFacts
from roles.transfer.push import WeightPusher
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


class Sender:
    """vLLM's trainer: takes as many tensors from the source as it is told, then fails."""

    def __init__(self, source: ZeroSource, takes: int | None) -> None:
        self.source, self.takes = source, takes

    def send_weights(self) -> None:
        if self.takes is not None:
            list(islice(self.source, self.takes))
        raise ConnectionError("the engine has died")


@pytest.mark.parametrize("takes", [None, 1, 3])
def test_a_push_that_breaks_off_gathers_what_the_other_ranks_wait_for(
    takes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathering is a collective: if rank 0 left it, its peers would hang, and nothing could be pushed any more."""
    module, gathered = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2), nn.Linear(2, 1)), []
    original = CheckpointFormat.__iter__

    def noted(self: CheckpointFormat) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in original(self):
            gathered.append(name)
            yield name, tensor

    def connect(module: nn.Module, groups: Any, client: Any, *others: Any, **more: Any) -> tuple[Any, Control]:
        source = ZeroSource(module, groups, torch.float32)
        return Sender(source, takes), Control(client, source, [0])

    monkeypatch.setattr(CheckpointFormat, "__iter__", noted)
    monkeypatch.setattr(roles.transfer.connect, "connect", connect)
    pusher = WeightPusher(module, OneEngine(), rank=0)
    with pytest.raises(ConnectionError):
        pusher.push(1)
    assert gathered == [name for name, _ in module.named_parameters()]
    with pytest.raises(WeightTransferError, match="cannot push version 2: an earlier push broke off"):
        pusher.push(2)


class OneEngine:
    """A client that describes one engine."""

    deadline_s = 1.0

    def call(self, method_name: str, *args: Any) -> list[Any]:
        assert method_name == "describe"
        return [EngineFacts(0, 1, "float32", "gloo")]
