"""What a role records inside its calls."""

from __future__ import annotations

import threading
import time

import pytest

from roles import spans
from roles.spans import KEPT, count, span, take_spans


@pytest.fixture(autouse=True)
def nothing_before() -> None:
    take_spans()
    spans._counted.clear()


def test_spans_are_taken_once_with_their_times() -> None:
    began = time.time()
    with span("update"), span("forward", items=3):
        time.sleep(0.01)
    (inner, outer), ended = take_spans(), time.time()
    assert [inner[2], outer[2]] == ["forward", "update"] and inner[4] == {"items": 3}
    assert began <= outer[0] <= inner[0] <= inner[1] - 0.01 <= outer[1] <= ended
    assert inner[3] == threading.get_ident() and take_spans() == []


def test_what_fails_is_recorded_too() -> None:
    with pytest.raises(OSError), span("reward call"):
        raise OSError
    assert [found[2] for found in take_spans()] == ["reward call"]


def test_counts_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "PAUSE_S", 3600.0)
    for number in range(1000):
        count("open responses", number)
    assert [found[4]["value"] for found in take_spans()] == [0]


def test_where_nobody_asks_the_newest_are_kept() -> None:
    for number in range(KEPT + 5):
        with span("forward", number=number):
            pass
    kept = take_spans()
    assert len(kept) == KEPT and kept[-1][4] == {"number": KEPT + 4}
