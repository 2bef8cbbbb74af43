from __future__ import annotations

import random

import pytest

from orchestrator.run.phase_clock import Clock, covered


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [
        ([], 0.0),
        ([(1.0, 3.0)], 2.0),
        ([(1.0, 3.0), (2.0, 4.0)], 3.0),
        ([(1.0, 9.0), (2.0, 4.0)], 8.0),
        ([(-5.0, 2.0), (9.0, 20.0)], 3.0),
        ([(-5.0, -1.0), (11.0, 12.0)], 0.0),
    ],
)
def test_covered(intervals: list[tuple[float, float]], seconds: float) -> None:
    assert covered(intervals, 0.0, 10.0) == pytest.approx(seconds)


def test_covered_equals_counting_cells() -> None:
    rng = random.Random(0)
    for _ in range(200):
        pairs = [sorted((rng.randint(-5, 25), rng.randint(-5, 25))) for _ in range(rng.randint(0, 6))]
        cells = sum(any(first <= cell < last for first, last in pairs) for cell in range(20))
        assert covered([(float(a), float(b)) for a, b in pairs], 0.0, 20.0) == cells


def test_the_driver_has_what_no_rank_had() -> None:
    told: list[str] = []
    clock = Clock(told.append)
    with clock("generate"):
        pass
    metrics = clock.metrics([(clock.began, clock.began + 1e-9)])
    assert clock.ended - clock.began == metrics["time/step_s"]
    assert told == ["generate"]
    assert set(metrics) == {"time/generate_s", "time/step_s", "time/driver_s"}
    assert metrics["time/driver_s"] == pytest.approx(metrics["time/step_s"], abs=1e-6)
