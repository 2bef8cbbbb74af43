"""Distributions of lengths: their means, their limits, and what is drawn from them."""

from __future__ import annotations

import math

import pytest

from cluster.estimate.lengths import Lengths, at_another_limit, fixed, from_quantiles, lognormal, moved_to_mean

LINE = Lengths((0.0, 0.5, 1.0), (0.0, 100.0, 1000.0))


def test_a_quantile_function_is_linear_between_its_points() -> None:
    assert [LINE.at(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [0, 50, 100, 550, 1000]
    assert LINE.mean == 0.5 * 50 + 0.5 * 550 and LINE.longest == 1000
    assert fixed(7).mean == fixed(7).at(0.3) == fixed(7).longest == 7


def test_what_is_drawn_stands_for_the_whole() -> None:
    assert LINE.spread_out(4) == pytest.approx((25, 75, 325, 775))
    drawn = LINE.draw(1000, 1)
    assert sorted(drawn) == list(LINE.spread_out(1000)) and drawn != LINE.spread_out(1000)
    assert drawn == LINE.draw(1000, 1) != LINE.draw(1000, 2)
    assert sum(drawn) / 1000 == pytest.approx(LINE.mean, rel=1e-3)
    assert LINE.spread_out(1) == (100,)


@pytest.mark.parametrize("mean", [2, 100, 398, 795, 2000, 3251, 3890])
@pytest.mark.parametrize("spread", [0.3, 1.0, 2.0])
def test_a_cut_lognormal_has_the_mean_that_was_asked_for(mean: float, spread: float) -> None:
    lengths = lognormal(mean, spread, 1, 3896)
    assert lengths.mean == pytest.approx(mean, rel=1e-3)
    assert list(lengths.tokens) == sorted(lengths.tokens)
    assert lengths.tokens[0] >= 1 and lengths.longest <= 3896


def test_without_a_cut_it_is_the_lognormal() -> None:
    lengths = lognormal(100, 0.5, 1, 1e9)
    median = 100 * math.exp(-(0.5**2) / 2)
    assert lengths.at(0.5) == pytest.approx(median, rel=0.01)
    assert lengths.at(0.841344746) == pytest.approx(median * math.exp(0.5), rel=0.01)


def test_what_leaves_nothing_open_is_fixed() -> None:
    assert lognormal(50, 0.0, 1, 100) == fixed(50)
    assert lognormal(100, 1.0, 1, 100) == lognormal(200, 1.0, 1, 100) == fixed(100)
    assert lognormal(3, 1.0, 10, 100) == fixed(10)


def test_measured_quantiles_get_ends_and_never_fall() -> None:
    lengths = from_quantiles({0.5: 20.0, 0.9: 15.0, 0.99: 900.0}, 1, 100)
    assert lengths == Lengths((0.0, 0.5, 0.9, 0.99, 1.0), (1, 20, 20, 100, 100))


@pytest.mark.parametrize("limit", [50, 101, 200, 800, 4000])
@pytest.mark.parametrize("spread", [0.3, 0.7, 1.5])
@pytest.mark.parametrize("mean", [40, 70, 90])
def test_what_a_limit_has_cut_goes_on_under_a_higher_one(mean: float, spread: float, limit: float) -> None:
    measured = lognormal(mean, spread, 1, 100)  # cut at 100
    median = measured.at(0.5) if measured.at(0.5) < 100 else measured.at(0.1) / math.exp(-1.2816 * spread)
    moved, whole = at_another_limit(measured, limit), lognormal(1e3, spread, 1, 1e9)
    known = [min(max(tokens * median / whole.at(0.5), 1), limit) for tokens in whole.tokens]  # the same, cut elsewhere
    assert moved.mean == pytest.approx(Lengths(whole.shares, tuple(known)).mean, rel=0.05)
    assert list(moved.tokens) == sorted(moved.tokens) and list(moved.shares) == sorted({*moved.shares})
    assert moved.longest <= limit


def test_what_no_limit_has_cut_stays_and_what_was_all_cut_grows() -> None:
    ended = Lengths((0.0, 0.5, 1.0), (1.0, 30.0, 90.0))
    assert at_another_limit(ended, 1000) == ended
    assert at_another_limit(ended, 60) == Lengths((0.0, 0.5, 1.0), (1.0, 30.0, 60.0))
    assert at_another_limit(fixed(40), 80) == fixed(80), "nothing is known of how long they would have been"


@pytest.mark.parametrize("mean", [2, 30, 100, 325, 700, 990])
def test_a_shape_can_be_moved_to_another_mean(mean: float) -> None:
    moved = moved_to_mean(from_quantiles({0.5: 100.0}, 1, 1000), mean, 1000)
    assert moved.mean == pytest.approx(mean, rel=1e-6)
    assert moved.tokens[0] >= 1 and moved.longest <= 1000 and list(moved.tokens) == sorted(moved.tokens)
    assert moved_to_mean(from_quantiles({0.5: 100.0}, 1, 1000), 2000, 1000) == fixed(1000)
