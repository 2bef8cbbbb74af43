from __future__ import annotations

import socket
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from roles.buckets import ALIGNMENT, plan_buckets
from roles.trainer_transfer import quiet_port
from roles.weight_transfer import DIGEST_COLUMNS, Digest, full_parameters, layers, parameter_shapes


def digest(*named: tuple[str, Tensor]) -> str:
    counted = Digest()
    for name, tensor in named:
        counted.add(name, tensor)
    return counted.hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [0, 1, 3, DIGEST_COLUMNS * 8, 20_001])
def test_the_digest_changes_with_any_one_number(dtype: torch.dtype, size: int) -> None:
    tensor = torch.arange(size).to(dtype)
    assert digest(("w", tensor)) == digest(("w", tensor.clone()))
    for place in {0, size // 2, size - 1} if size else ():
        changed = tensor.clone()
        changed[place] = -changed[place] - 1
        assert digest(("w", changed)) != digest(("w", tensor))


def test_the_digest_sees_blocks_that_changed_places() -> None:
    tensor = torch.randn(4, 4096)
    assert digest(("w", tensor[[1, 0, 2, 3]])) != digest(("w", tensor))


def test_the_digest_sees_names_shapes_dtypes_and_missing_tensors() -> None:
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    whole = digest(("a", a), ("b", b))
    assert digest(("b", b), ("a", a)) == whole, "the order of arrival does not matter"
    for other in (
        digest(("a", b), ("b", a)),
        digest(("a", a)),
        digest(("a", a), ("b", b.view(4, 16))),
        digest(("a", a), ("b", b.view(torch.int32))),
    ):
        assert other != whole


def test_the_digest_reads_views_at_odd_places() -> None:
    memory = torch.zeros(1000, dtype=torch.uint8)
    view = memory[4:804].view(torch.float32)
    view.copy_(torch.randn(200))
    assert digest(("w", view)) == digest(("w", view.clone()))
    square = torch.randn(30, 20)
    assert digest(("w", square.t())) == digest(("w", square.t().contiguous()))


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
