"""The benchmarks' inputs are still what the roles take; their figures are nobody's test."""

from __future__ import annotations

from tests.benchmarks.lora import ROWS, rollouts


def test_the_rollouts_of_the_lora_benchmark_are_whole() -> None:
    assert len(rollouts()) == ROWS
