from __future__ import annotations

import random

import pytest
import torch

from roles.packing import EVEN_TOKENS, Packed, balance, micro_batches, pack, right_padded


def ragged(seed: int, rows: int, longest: int = 200) -> list[int]:
    generator = random.Random(seed)
    return [generator.randint(1, longest) for _ in range(rows)]


def work(length: int) -> float:
    """Of a sequence, in units of the products with weights for a token."""
    return length + length**2 / EVEN_TOKENS


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("longest", [200, 100_000])
def test_balance_counts_and_sums(seed: int, parts: int, longest: int) -> None:
    lengths = ragged(seed, rows=random.Random(seed).randint(0, 40), longest=longest)
    shares = balance(lengths, parts)
    assert len(shares) == parts
    assert sorted(row for share in shares for row in share) == list(range(len(lengths)))
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    sums = [sum(work(lengths[row]) for row in share) for share in shares]
    assert max(sums) - min(sums) <= work(max(lengths, default=0)) + 1e-6
    assert all(share == sorted(share) for share in shares)
    assert shares == balance(lengths, parts)


def test_balance_is_close_for_many_rows() -> None:
    lengths = ragged(1, rows=256)
    sums = [sum(lengths[row] for row in share) for share in balance(lengths, 4)]
    assert (max(sums) - min(sums)) / (sum(sums) / 4) < 0.01


@pytest.mark.parametrize("seed", range(5))
def test_balance_counts_attention(seed: int) -> None:
    """Long and short samples, as people have them: by tokens alone a rank has up to 1 % more work than the mean."""
    generator = random.Random(seed)
    lengths = [min(int(generator.lognormvariate(8, 1.2)), 32_768) for _ in range(256)]
    sums = [sum(work(lengths[row]) for row in share) for share in balance(lengths, 8)]
    assert max(sums) / (sum(sums) / 8) < 1.002


def test_balance_leaves_parts_empty_when_rows_run_out() -> None:
    assert balance([5], 3) == [[0], [], []]
    with pytest.raises(ValueError, match="parts=0"):
        balance([5], 0)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("budget", [1, 100, 250, 10_000])
@pytest.mark.parametrize("at_least", [0, 1, 3, 50])
def test_micro_batches_cover_each_row_once_within_the_budget(seed: int, budget: int, at_least: int) -> None:
    lengths = ragged(seed, rows=random.Random(seed).randint(0, 30))
    bins = micro_batches(lengths, budget, at_least)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    assert len(bins) >= at_least
    assert all(len(rows) == 1 or sum(lengths[row] for row in rows) <= budget for rows in bins)
    full = [rows for rows in bins if rows]
    assert bins[: len(full)] == full, "empty bins come last"
    if len(lengths) >= at_least:
        assert len(full) == len(bins)
    assert all(rows == sorted(rows) for rows in bins)
    assert bins == micro_batches(lengths, budget, at_least)


def test_micro_batches_do_not_make_more_bins_than_needed() -> None:
    assert micro_batches([3, 3, 3, 3], 6) == [[0, 1], [2, 3]]
    assert micro_batches([3, 3, 3, 3], 100) == [[0, 1, 2, 3]]


def test_micro_batches_group_similar_lengths() -> None:
    assert micro_batches([1, 9, 1, 9], 18) == [[1, 3], [0, 2]]


def test_a_row_over_the_budget_stands_alone() -> None:
    assert micro_batches([2, 50, 2], 10) == [[1], [0, 2]]


def test_micro_batches_split_the_heaviest_for_other_ranks() -> None:
    assert micro_batches([4, 4, 4, 4], 100, at_least=2) == [[0, 1], [2, 3]]
    assert micro_batches([4, 4], 100, at_least=3) == [[0], [1], []]
    assert micro_batches([], 100, at_least=2) == [[], []]


def test_micro_batches_refuse_nonsense() -> None:
    with pytest.raises(ValueError, match="max_tokens=0"):
        micro_batches([1], 0)


def test_pack_against_a_loop() -> None:
    lengths = torch.tensor([3, 1, 4])
    tokens = torch.arange(12).view(3, 4)
    packed = pack(tokens, lengths)
    expected, positions, starts = [], [], [0]
    for row, length in enumerate(lengths.tolist()):
        expected += tokens[row, :length].tolist()
        positions += range(length)
        starts.append(len(expected))
    assert packed.token_ids.tolist() == expected
    assert packed.position_ids.tolist() == positions
    assert packed.starts.tolist() == starts
    assert packed.starts.dtype == torch.int32
    assert packed.token_ids.dtype == packed.position_ids.dtype == torch.int64
    assert packed.longest == 4


@pytest.mark.parametrize("seed", range(10))
def test_packing_leaves_out_the_padding_alone(seed: int) -> None:
    lengths = torch.tensor(ragged(seed, rows=5, longest=9))
    tokens = torch.randint(1, 100, (5, 12))
    rows = pack(tokens, lengths).token_ids.split(lengths.tolist())
    assert [row.tolist() for row in rows] == [tokens[n, :length].tolist() for n, length in enumerate(lengths)]


def test_rows_are_padded_on_the_right() -> None:
    padded, lengths = right_padded([[5], [6, 7, 8]], fill=9)
    assert padded.tolist() == [[5, 9, 9], [6, 7, 8]]
    assert lengths.tolist() == [1, 3] and padded.dtype == lengths.dtype == torch.int64


def test_packing_nothing() -> None:
    packed = pack(torch.zeros(0, 7, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    assert packed.token_ids.shape == (0,)
    assert packed.starts.tolist() == [0]
    assert packed.longest == 0


def test_packed_checks_its_shapes() -> None:
    tokens = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="position_ids"):
        Packed(tokens, tokens[:2], torch.zeros(2, dtype=torch.int32), 3)
    with pytest.raises(ValueError, match="starts"):
        Packed(tokens, tokens, torch.zeros(0, dtype=torch.int32), 3)
