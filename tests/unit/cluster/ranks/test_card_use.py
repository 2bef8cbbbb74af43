"""What a rank's GPUs hold, as torch tells it: a stand-in for torch says what a card would."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.ranks import card_use


def torch_with(cards: list[tuple[int, int]], initialized: bool = True, busy: int | None = 50) -> Any:
    """Cards of (used, total) bytes; `busy` percent, None where the driver's library is missing."""
    resets: list[int] = []

    def utilization() -> int:
        if busy is None:
            raise ModuleNotFoundError("pynvml")
        return busy

    cuda = SimpleNamespace(
        is_initialized=lambda: initialized,
        device_count=lambda: len(cards),
        mem_get_info=lambda card: (cards[card][1] - cards[card][0], cards[card][1]),
        max_memory_allocated=lambda card: cards[card][0] // 4,
        max_memory_reserved=lambda card: cards[card][0] // 2,
        reset_peak_memory_stats=resets.append,
        get_device_name=lambda card: "NVIDIA H100 80GB HBM3",
        utilization=utilization,
    )
    return SimpleNamespace(cuda=cuda, resets=resets)


def test_the_fullest_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = torch_with([(100, 1000), (400, 1000)])
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(card_use, "CARD_INTERVAL_S", 0.01)
    sampler = card_use.CardSampler()
    until = time.monotonic() + 60
    while not sampler._samples:
        assert time.monotonic() < until
        time.sleep(0.01)
    use = sampler.drain()
    assert use is not None and use.name == "NVIDIA H100 80GB HBM3"
    assert {(sample.used_bytes, sample.busy) for sample in use.samples} == {(400, 0.5)}
    assert (use.allocated_bytes, use.reserved_bytes) == (100, 200)
    assert torch.resets == [0, 1], "the next step's peaks are its own"


@pytest.mark.parametrize("torch", [None, SimpleNamespace(), torch_with([(1, 2)], initialized=False)])
def test_a_process_that_uses_no_card_has_nothing_to_tell(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is not loaded, half loaded, or has not touched a card: it is not the sampler that makes it."""
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert card_use.CardSampler().drain() is None


def test_without_the_drivers_library_memory_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert card_use.sample(torch_with([(7, 9)], busy=None)).used_bytes == 7
    assert card_use.sample(torch_with([(7, 9)], busy=None)).busy is None


def test_a_driver_that_cannot_say_how_busy_a_card_is_does_not_end_the_sampling() -> None:
    """NVML's own errors are no RuntimeErrors: so of a part of a card (MIG)."""

    class NotSupported(Exception):
        pass

    def utilization() -> int:
        raise NotSupported

    torch = torch_with([(7, 9)])
    torch.cuda.utilization = utilization
    assert (card_use.sample(torch).used_bytes, card_use.sample(torch).busy) == (7, None)
