"""Roles on a card: every ZeRO stage, checkpointing, sleeping, offloading, LoRA, saving and loading; memory and speed.

Each setting runs in a process of its own (`rank.py`), those of a test side by side. One card cannot show what several
ranks do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.estimate.memory import GIB
from cluster.placement.accelerators import card_called
from tests.gpu.conftest import Rank

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(150)]

SPARE = 0.15
"""GiB of an allocator's blocks that other tensors share: what may stay reserved beside what is allocated."""


def together(folder: Path, specs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The results by name; all run at the same time."""
    ranks = {name: Rank(folder, spec) for name, spec in specs.items()}
    return {name: rank.result() for name, rank in ranks.items()}


def test_every_stage_computes_and_trains_alike(folder_of: Callable[[str], Path]) -> None:
    results = together(
        folder_of("135m"),
        {
            "exact": {"dtype": "float32"},
            "reference": {"role": "reference"},
            "critic": {"role": "critic"},
            "0": {"zero": {"stage": 0}},
            "2": {"zero": {"stage": 2}},
            "3": {},
            "3, checkpointing": {"gradient_checkpointing": True},
        },
    )
    exact = results["exact"]["numbers"]
    for name in ("reference", "0", "2", "3", "3, checkpointing"):
        gaps = [abs(a - b) for a, b in zip(results[name]["numbers"], exact, strict=True)]
        assert sum(gaps) / len(gaps) < 0.02, name
        assert results[name]["numbers"] == results["3"]["numbers"], name
    for name in ("exact", "0", "2", "3", "3, checkpointing"):
        assert results[name]["stats"][0]["ratio_first_minibatch"] == pytest.approx(1, abs=1e-3)
    assert results["2"]["fingerprint"] == results["3"]["fingerprint"] == results["3, checkpointing"]["fingerprint"]
    assert results["critic"]["stats"][1]["loss"] < results["critic"]["stats"][0]["loss"]


def test_what_sleeps_or_is_offloaded_is_saved_and_loaded(folder_of: Callable[[str], Path]) -> None:
    resume = {"resume": True, "micro_batch_tokens": 256}
    results = together(
        folder_of("135m"),
        {
            "awake": resume,
            "asleep": {**resume, "zero": {"sleep": True}},
            "optimizer": {**resume, "zero": {"offload_optimizer": True}},
            "mean": {**resume, "zero": {"offload_parameters": True}, "ema_decay": 0.9},
            "adapters": {**resume, "zero": {"sleep": True}, "lora": {"rank": 16}, "gradient_checkpointing": True},
        },
    )
    for name, result in results.items():
        assert result["resume_gap"] == 0, name
        assert result["moved"] > 0, name
        for call in ("start", "score", "update", "save", "load", "update_after_load"):
            held = result[call]
            assert held["reserved"] - held["allocated"] < SPARE, (name, call)
    parameters = results["asleep"]["parameters"]
    asleep = results["asleep"]
    for call in ("start", "score", "update", "save", "load", "update_after_load"):
        assert asleep[call]["allocated"] < 3 * parameters / GIB, call  # weights, and what libraries keep
    assert asleep["checkpoint"] == pytest.approx(results["awake"]["checkpoint"], rel=0.02)
    assert asleep["checkpoint"] == pytest.approx(12 * parameters / GIB, rel=0.05)
    assert results["adapters"]["checkpoint"] < 0.1


def test_a_billion_parameters_use_the_card(folder_of: Callable[[str], Path], card: str) -> None:
    """In bfloat16, alone on the card; 6 operations a parameter and token."""
    spec = {"shares_card": False, "micro_batch_tokens": 32768, "rows": 64, "tokens": 1024, "repeat": 3}
    result = Rank(folder_of("1b"), spec).result()
    known = card_called(card)
    assert known is not None, f"{card} is not in cluster/placement/accelerators.py"
    reached = 6 * result["parameters"] * result["tokens"] / result["update"]["seconds"] / (1e12 * known.tflops)
    scored = 2 * result["parameters"] * result["tokens"] / result["score"]["seconds"] / (1e12 * known.tflops)
    print(f"1.2B: MFU of the update {reached:.1%}, of scoring {scored:.1%}; {result['update']}")
    assert reached > 0.4  # 46.6 % were measured on an H100
