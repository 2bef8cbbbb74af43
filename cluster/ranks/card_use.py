"""How full and how busy a rank's GPUs are; each rank that has one keeps a sampler running. Nothing without a GPU.

Two views: what torch holds in this process (allocated by tensors; reserved from the driver, which others cannot have),
and what is in use on the whole card by all processes, as the driver counts it.
"""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

CARD_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class CardSample:
    """A rank's cards at one moment."""

    at: float
    """Wall-clock seconds."""
    used_bytes: int
    """Bytes in use on the fullest card, by all processes."""
    busy: float | None
    """Share of the latest interval in which a kernel was running; None if the driver does not report it."""


@dataclass(frozen=True, slots=True)
class CardUse:
    """Use of a rank's cards since the last report."""

    name: str
    """The driver's name of the card, such as `NVIDIA H100 80GB HBM3`."""
    samples: list[CardSample]
    allocated_bytes: int
    """Most bytes in tensors of this process, on the fullest of its cards."""
    reserved_bytes: int
    """Most bytes reserved by torch in this process, on the fullest of its cards."""


class CardSampler:
    """Samples the cards of this process once torch has begun to use them."""

    def __init__(self) -> None:
        self._samples: list[CardSample] = []
        threading.Thread(target=self._run, name="card-sampler", daemon=True).start()

    def drain(self) -> CardUse | None:
        """Use of the cards since the last drain; None if this process has not used a card yet."""
        torch = _torch_on_cards()
        if torch is None:
            return None
        samples, self._samples = self._samples, []
        cards = range(torch.cuda.device_count())
        allocated = max(torch.cuda.max_memory_allocated(card) for card in cards)
        reserved = max(torch.cuda.max_memory_reserved(card) for card in cards)
        for card in cards:
            torch.cuda.reset_peak_memory_stats(card)
        return CardUse(torch.cuda.get_device_name(0), samples, allocated, reserved)

    def _run(self) -> None:
        while True:
            time.sleep(CARD_INTERVAL_S)
            torch = _torch_on_cards()
            if torch is not None:
                self._samples.append(sample(torch))


def sample(torch: Any) -> CardSample:
    """A sample of the cards now."""
    used, busy = 0, None
    for card in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(card)
        used = max(used, total - free)
    with suppress(Exception):  # no driver's library, or it does not report it (for a part of a card: MIG)
        busy = torch.cuda.utilization() / 100
    return CardSample(time.time(), used, busy)


def _torch_on_cards() -> Any:
    """torch, if it is imported and has a card. Neither imports torch nor initialises CUDA."""
    torch = sys.modules.get("torch")
    # torch has no `cuda` yet while another thread imports it.
    return torch if torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized() else None
