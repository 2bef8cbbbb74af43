"""The rows of each optimizer step, and each rank's share of them."""

from __future__ import annotations

import pytest
import torch

from orchestrator.data.demonstrations import PtxData, PtxSource
from orchestrator.data.packed_demonstrations import packed
from orchestrator.ppo.mini_batches import optimizer_steps, share_out, trained_rows, with_pretraining
from roles.shares import ActorExperience
from tests.unit.orchestrator.ppo.test_experience import BETA, make_ppo, make_scored
from tests.unit.orchestrator.ppo.whole_batch import to_experience

LENGTHS = [2 + (7 * row) % 13 for row in range(24)]


def make_experience(rows: int) -> ActorExperience:
    """Of ragged lengths."""
    scored = make_scored([(1, length - 1) for length in LENGTHS[:rows]])
    return to_experience(scored, BETA, make_ppo())[0].actor


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_mini_batches_are_fresh_permutations_that_do_not_depend_on_the_ranks(ranks: int) -> None:
    shares = optimizer_steps(LENGTHS, epochs=3, mini_batches=4, seed=5, ranks=ranks)
    (alone,) = optimizer_steps(LENGTHS, epochs=3, mini_batches=4, seed=5, ranks=1)
    assert len(shares) == ranks
    assert all(len(steps) == 12 for steps in shares)
    steps = [sorted(row for rank in range(ranks) for row in shares[rank][step]) for step in range(12)]
    assert steps == [sorted(part) for part in alone]
    epochs = [steps[first : first + 4] for first in (0, 4, 8)]
    for epoch in epochs:
        assert sorted(row for step in epoch for row in step) == list(range(24))
    assert epochs[0] != epochs[1] != epochs[2]


def test_mini_batches_are_a_function_of_the_seed() -> None:
    def order(seed: int) -> list[list[list[int]]]:
        return optimizer_steps(LENGTHS[:16], epochs=1, mini_batches=4, seed=seed, ranks=2)

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_mini_batches_are_balanced() -> None:
    shares = optimizer_steps(LENGTHS, epochs=1, mini_batches=2, seed=0, ranks=3)
    for step in range(2):
        sums = [sum(LENGTHS[row] for row in shares[rank][step]) for rank in range(3)]
        assert [len(shares[rank][step]) for rank in range(3)] == [4, 4, 4]
        assert max(sums) - min(sums) <= 14


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_rank_gets_each_of_its_rows_once_and_whole(ranks: int) -> None:
    """Whatever the number of epochs; the steps are those of the schedule."""
    experience, schedule = make_experience(24), {"epochs": 4, "mini_batches": 2, "seed": 5, "ranks": ranks}
    shares, steps = share_out(experience, **schedule), optimizer_steps(LENGTHS, **schedule)
    for share, own in zip(shares, steps, strict=True):
        rows = share.experience.rows.tolist()
        assert rows == sorted({row for step in own for row in step})
        assert [[rows[place] for place in step] for step in share.steps] == own
        for place, row in enumerate(rows):
            length = LENGTHS[row]
            for name in ("token_ids", "response_mask", "old_logprobs", "advantages"):
                sent, whole = getattr(share.experience, name), getattr(experience, name)
                torch.testing.assert_close(sent[place, :length], whole[row, :length], rtol=0, atol=0)


def test_a_row_that_is_lost_or_taken_twice_is_not_counted_as_trained() -> None:
    experience, schedule = make_experience(24), {"epochs": 2, "mini_batches": 2, "seed": 5, "ranks": 2}
    shares = share_out(experience, **schedule)
    assert trained_rows(shares, epochs=2) == set(range(24))
    assert trained_rows(shares, epochs=1) == set()
    assert len(trained_rows(shares[:1], epochs=2)) < 24
    shares[0].steps[0].append(shares[0].steps[0][0])
    assert len(trained_rows(shares, epochs=2)) == 23
    shares[1].steps[-1].pop()
    assert len(trained_rows(shares, epochs=2)) == 22


def test_a_row_without_a_trained_token_is_not_trained() -> None:
    experience = make_experience(24)
    experience.response_mask[3] = False
    shares = share_out(experience, epochs=2, mini_batches=2, seed=5, ranks=2)
    assert trained_rows(shares, epochs=2) == {*range(24)} - {3}


@pytest.mark.parametrize("ranks", [1, 2])
def test_there_is_no_optimizer_step_without_a_trained_token(ranks: int) -> None:
    experience, schedule = make_experience(24), {"epochs": 2, "mini_batches": 4, "seed": 5, "ranks": ranks}
    planned = optimizer_steps(LENGTHS, **schedule)
    experience.response_mask[[row for own in planned for row in own[1]]] = False
    for share, own in zip(share_out(experience, **schedule), planned, strict=True):
        rows = share.experience.rows.tolist()
        kept = [step for number, step in enumerate(own) if number != 1]
        assert [[rows[place] for place in step] for step in share.steps] == kept
    experience.response_mask[:] = False
    assert [share.steps for share in share_out(experience, **schedule)] == [[]] * ranks


def test_mini_batches_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ValueError, match="mini_batches=3 does not divide the 8 samples"):
        optimizer_steps(LENGTHS[:8], epochs=1, mini_batches=3, seed=0, ranks=1)
    with pytest.raises(ValueError, match="2 samples cannot be shared out over 3 ranks; use at most 2"):
        optimizer_steps(LENGTHS[:8], epochs=1, mini_batches=4, seed=0, ranks=3)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_each_optimizer_step_has_fresh_rows_beside_it_that_do_not_depend_on_the_ranks(ranks: int) -> None:
    lengths = [2 + row for row in range(20)]
    rows = packed([[row] * length for row, length in enumerate(lengths)], [[True] * length for length in lengths], 0)
    source, alone = (PtxSource(PtxData(rows, (), ""), seed=5) for _ in range(2))
    expected = alone.next(4 * 2).token_ids[:, 0].tolist()
    shares = share_out(make_experience(24), epochs=2, mini_batches=2, seed=5, ranks=ranks)
    given = with_pretraining(shares, source, count=2)
    assert [share.experience for share in given] == [share.experience for share in shares]
    for step in range(4):
        found = [
            int(share.beside.experience.token_ids[place, 0])  # type: ignore[union-attr]
            for share in given
            for place in share.beside.steps[step]  # type: ignore[union-attr]
        ]
        assert sorted(found) == sorted(expected[2 * step : 2 * step + 2])
