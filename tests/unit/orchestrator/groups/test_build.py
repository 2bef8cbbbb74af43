"""What a run asks of its cluster before any role starts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.placement.plan import Plan
from orchestrator.config.loading import load_config
from orchestrator.config.role_needs import ppo_roles
from orchestrator.groups import build, recovery

TINY = Path(__file__).resolve().parents[4] / "configs" / "tiny.yaml"


WAITS = [
    "waiting for Ray to give: 3",
    "waiting for room: 2 GPUs",
    "waiting for room: 1 GPU",
    "waiting for Ray to give: 2",
]


def test_room_is_waited_for_as_long_as_the_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    told, shown = list[str](), list[Any]()

    def cluster(plan: Plan, *, deadline_s: float, waits: Callable[[str], None], **others: Any) -> nullcontext[None]:
        asked.append(deadline_s)
        for text in WAITS:
            waits(text)
        return nullcontext()

    monkeypatch.setattr(build, "RayCluster", cluster)
    config = load_config(TINY, ["deadlines.resources_s=7"])
    with build.builder(config, ppo_roles(config), told.append, shown.append):
        assert asked == [7]
    assert shown[1:] == [{"Ray": text} for text in WAITS] and told == WAITS[:2]


def test_what_a_run_waits_for_is_told_again_every_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now, told = [0.0], list[str]()
    monkeypatch.setattr(recovery, "time", SimpleNamespace(monotonic=lambda: now[0]))
    waits = recovery.waits_for_room(told.append, recovery.unshown)
    for now[0] in (5.0, 10.0, 64.0, 65.0, 124.0, 126.0):
        waits(f"waiting for room: {now[0]:.0f} s")
    assert told == [f"waiting for room: {seconds} s" for seconds in (5, 65, 126)]
