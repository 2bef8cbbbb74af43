"""Every metric that a panel of the dashboard asks for is one that a run exports; and what is exported of a step."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cluster.ranks.card_use import CardSample, CardUse
from cluster.ranks.identity import Identity
from cluster.ranks.usage import CallOrigin, InnerSpan, RankCall, RankUsage
from cluster.runtime import ray_metrics
from cluster.runtime.ray_metrics import (
    COUNTERS,
    HISTOGRAMS,
    OF_RANKS,
    STEP_GAUGE,
    StepOfRun,
    export_metrics,
    gauge_of,
)
from orchestrator.metrics import METRICS

DOCKER = Path(__file__).resolve().parents[3] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana-dashboard.json").read_text())
PARTS = ("_bucket", "_sum", "_count")
EXPORTED = {
    *(STEP_GAUGE, *OF_RANKS, *map(gauge_of, METRICS)),
    *(f"{name}{part}" for name in HISTOGRAMS for part in PARTS),
    *(f"{name}_total" for name in COUNTERS),
}
"""Without Ray's `ray_`."""


def asked() -> dict[str, set[str]]:
    """Title of a panel → the metrics that it asks for."""
    return {
        panel["title"]: {
            name for target in panel["targets"] for name in re.findall(r"ray_(tetrarch_\w+)", target["expr"])
        }
        for panel in DASHBOARD["panels"]
    }


def test_every_panel_asks_for_what_is_exported() -> None:
    for title, names in asked().items():
        assert names and names <= EXPORTED, title
    variable = DASHBOARD["templating"]["list"][1]["query"]
    assert set(re.findall(r"ray_(tetrarch_\w+)", variable)) <= EXPORTED


def test_the_names_are_prometheus_own_and_differ() -> None:
    names = [gauge_of(key) for key in METRICS]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in EXPORTED)


def test_panels_have_places_of_their_own() -> None:
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_prometheus_reads_where_ray_lists_its_nodes() -> None:
    (job,) = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}]


class Metric:
    """Stands for one of Ray's metrics."""

    told: dict[tuple[str, tuple[str, ...]], float]

    def __init__(self, name: str, about: str, tag_keys: tuple[str, ...], boundaries: Any = None) -> None:
        self.name, self.keys = name, tag_keys

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert set(tags) <= set(self.keys)
        self.told[self.name, tuple(tags.values())] = value

    inc = observe = set


def test_what_is_exported_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Metric, "told", {}, raising=False)
    for name in ("Gauge", "Counter", "Histogram"):
        monkeypatch.setattr(ray_metrics, name, Metric)
    monkeypatch.setattr(ray_metrics, "_known", {})
    monkeypatch.setattr(ray_metrics, "_failed", [])
    monkeypatch.setattr(ray_metrics, "ray", SimpleNamespace(is_initialized=lambda: True))
    cards = CardUse("H100", [CardSample(-8.0, 60, 0.1), CardSample(1.0, 70, 0.5), CardSample(2.0, 90, 1.0)], 1, 1)
    counts = [InnerSpan(n, n, "open responses", 1, {"value": 8 - n}) for n in range(3)]
    busy = [RankCall(at, at + 3.0, "stream", CallOrigin(at, "")) for at in (-9.0, 1.0)]  # the first: an evaluation
    ranks = [(Identity("rollout", 1, "node", "log"), RankUsage(1, busy, {1: 5, 2: 9}, cards, counts))]
    numbers = {"score/mean": 0.5, "objective/kl": math.nan, "time/step_s": 4.0, "time/update_s": 1.0}
    told = list[str]()
    step = StepOfRun("first", 7, 0.0, 4.0, ranks)
    export_metrics(step, numbers | {"healing/engine_restarts": 2.0}, told.append)
    engine = ("first", "rollout", "1")
    assert Metric.told == {
        ("tetrarch_step", ("first",)): 7,
        ("tetrarch_score_mean", ("first",)): 0.5,
        ("tetrarch_time_step_s", ("first",)): 4.0,
        ("tetrarch_time_update_s", ("first",)): 1.0,
        ("tetrarch_phase_seconds", ("first", "update")): 1.0,
        ("tetrarch_step_seconds", ("first", "step")): 4.0,
        ("tetrarch_healing_engine_restarts", ("first",)): 2.0,
        ("tetrarch_restarts", ("first", "engine_restarts")): 2.0,
        ("tetrarch_rank_busy_fraction", engine): 0.75,
        ("tetrarch_rank_host_memory_bytes", engine): 9,
        ("tetrarch_rank_gpu_memory_bytes", engine): 90,
        ("tetrarch_rank_gpu_utilization", engine): 0.75,
        ("tetrarch_engine_open_responses", engine): 8,
    }
    monkeypatch.setattr(ray_metrics, "_known", {})
    monkeypatch.setattr(ray_metrics, "Gauge", lambda *args, **more: 1 / 0)
    for _ in range(3):
        export_metrics(step, numbers, told.append)
    assert len(told) == 1 and "Ray exports no metrics of the run any more" in told[0]


def test_without_ray_nothing_is_exported() -> None:
    export_metrics(StepOfRun("first", 7, 0.0, 4.0, []), {"score/mean": 0.5}, [].append)
    assert ray_metrics._known == {}
