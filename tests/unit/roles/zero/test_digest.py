from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roles.zero.digest import ROW, VERSION, Digest, _weights


def digest(*named: tuple[str, Tensor]) -> str:
    counted = Digest()
    for name, tensor in named:
        counted.add(name, tensor)
    return counted.hexdigest()


def by_name(*named: tuple[str, Tensor]) -> dict[str, str]:
    counted = Digest()
    for name, tensor in named:
        counted.add(name, tensor)
    return counted.by_name()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [0, 1, 3, ROW * 8, 1021 * 8, 20_001])
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_sees_rows_at_any_distance_and_halves_that_changed_places(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4096, 64, generator=generator).to(dtype)
    whole = digest(("w", rows))
    for distance in (1, 2, 255, 256, 512, 1021, 1024, 2042, 2048, 4 * 1021 // 2):
        swapped = rows.clone()
        swapped[[7, 7 + distance]] = rows[[7 + distance, 7]]
        assert digest(("w", swapped)) != whole, distance
    for length in (2042, 2048, 4096):
        half = length // 2
        turned = torch.cat([rows[half:length], rows[:half]])
        assert digest(("w", turned)) != digest(("w", rows[:length]))
    square = rows[:64]
    assert digest(("w", square.t())) != digest(("w", square))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_digest_sees_any_two_numbers_that_changed_places(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(5000, generator=generator).to(dtype)
    whole = digest(("w", numbers))
    for i, j in torch.randint(5000, (300, 2), generator=generator).tolist():
        if numbers[i] != numbers[j]:
            swapped = numbers.clone()
            swapped[[i, j]] = numbers[[j, i]]
            assert digest(("w", swapped)) != whole, (i, j)


def test_the_digest_is_the_arithmetic_that_it_says() -> None:
    """A checkpoint holds digests: another outcome needs another `VERSION`."""
    assert VERSION == "2"
    assert digest(("w", torch.arange(1000))) == ("2-348b65f48ca631ed9b82a8ef1b7b66e602e5dd33ddd7e0ffd17ce0c40a6e80b8")
    small = torch.arange(ROW + 1)
    weights = _weights(small.device).tolist()
    assert all(weight % 2 for weight in weights) and len(set(weights)) == ROW
    first = sum(place * weight for place, weight in enumerate(weights)) % 2**64
    rest = ROW * weights[0] % 2**64
    signed = [word - 2**64 if word >= 2**63 else word for word in (first, rest)]
    mixed = [word ^ word >> 32 for word in signed]
    expected = (mixed[0] * weights[0] + mixed[1] * weights[1]) % 2**64
    assert by_name(("w", small)) == {"w": f"torch.int64[{ROW + 1}]{expected:016x}"}


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
