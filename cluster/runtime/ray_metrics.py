"""A run's numbers as Ray's metrics, which each node of a Ray cluster exports for Prometheus.

Ray puts `ray_` before the names. Every metric of a step is a gauge, `objective/kl` for example `tetrarch_objective_kl`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from cluster.ranks.identity import Identity
from cluster.ranks.usage import RankUsage

BUCKETS_S = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
"""Upper bounds of the histograms' buckets."""
HISTOGRAMS = {
    "tetrarch_step_seconds": "Duration of a step",
    "tetrarch_phase_seconds": "Duration of a phase of a step",
}
COUNTERS = {"tetrarch_restarts": "Engines, groups and runs that were started again, and rollbacks"}
OF_RANKS = {
    "tetrarch_rank_busy_fraction": "Share of the step in which the rank ran a method",
    "tetrarch_rank_host_memory_bytes": "Host memory of the rank and its processes, most since the last step",
    "tetrarch_rank_gpu_memory_bytes": "Memory in use on the rank's fullest GPU, most since the last step",
    "tetrarch_rank_gpu_utilization": "Share of the step in which a kernel was running, mean over its samples",
    "tetrarch_engine_open_responses": "Responses that an engine had not completed, most since the last step",
}
"""Gauges with a value for each rank."""
STEP_GAUGE = "tetrarch_step"
HEALING = "healing/"
TIME = re.compile(r"time/(\w+)_s")
_known: dict[str, Any] = {}
_failed: list[Exception] = []
"""The error after which nothing is exported any more."""


def gauge_of(key: str) -> str:
    """The gauge of a metric of `metrics.jsonl`."""
    return "tetrarch_" + re.sub(r"\W", "_", key)


@dataclass(frozen=True, slots=True)
class StepOfRun:
    """A step as it is exported."""

    run: str
    """The run's name, for the tag `run`."""
    step: int
    began: float
    """Wall-clock seconds, as `ended`."""
    ended: float
    ranks: Sequence[tuple[Identity, RankUsage]]


def export_metrics(step: StepOfRun, metrics: Mapping[str, float], tell: Callable[[str], None]) -> None:
    """Export the numbers of a step. Does nothing where Ray does not run. The first error is told, and nothing is
    exported from then on."""
    if _failed:
        return
    try:
        if ray.is_initialized():
            _export(step, metrics)
    except Exception as error:
        _failed.append(error)
        tell(
            f"Ray exports no metrics of the run any more ({str(error) or type(error).__name__}); metrics.jsonl has them"
        )


def _export(exported: StepOfRun, metrics: Mapping[str, float]) -> None:
    run, step = exported.run, exported.step
    _gauge(STEP_GAUGE, "Steps done").set(step, {"run": run})
    for key, value in metrics.items():
        if math.isfinite(value):
            _gauge(gauge_of(key), key).set(value, {"run": run})
            if key.startswith(HEALING) and value > 0:
                _counter("tetrarch_restarts").inc(value, {"run": run, "kind": key.removeprefix(HEALING)})
            elif (phase := TIME.fullmatch(key)) and phase[1] not in ("step", "driver"):
                _histogram("tetrarch_phase_seconds").observe(value, {"run": run, "phase": phase[1]})
    if (seconds := metrics.get("time/step_s", 0.0)) > 0:
        _histogram("tetrarch_step_seconds").observe(seconds, {"run": run, "phase": "step"})
        for who, usage in exported.ranks:
            for name, value in _of_rank(usage, exported.began, exported.ended).items():
                _gauge(name, OF_RANKS[name]).set(value, {"run": run, "role": who.role, "rank": str(who.rank)})


def _of_rank(usage: RankUsage, began: float, ended: float) -> dict[str, float]:
    """The rank's gauges; its usage may also tell of what was before the step, such as an evaluation."""
    busy = sum(max(min(call.ended, ended) - max(call.began, began), 0.0) for call in usage.busy)
    found = {"tetrarch_rank_busy_fraction": min(busy / (ended - began), 1.0)} if ended > began else {}
    if usage.series:
        found["tetrarch_rank_host_memory_bytes"] = max(usage.series.values())
    if usage.cards is not None and usage.cards.samples:
        found["tetrarch_rank_gpu_memory_bytes"] = max(sample.used_bytes for sample in usage.cards.samples)
        during = [sample for sample in usage.cards.samples if began <= sample.at <= ended]
        shares = [sample.busy for sample in during if sample.busy is not None]
        if shares:
            found["tetrarch_rank_gpu_utilization"] = sum(shares) / len(shares)
    waiting = [span.facts["value"] for span in usage.inner if span.name == "open responses"]
    return found | ({"tetrarch_engine_open_responses": max(waiting)} if waiting else {})


def _gauge(name: str, about: str) -> Any:
    tags = ("run", "role", "rank") if name in OF_RANKS else ("run",)
    if name not in _known:
        _known[name] = Gauge(name, about, tag_keys=tags)
    return _known[name]


def _counter(name: str) -> Any:
    if name not in _known:
        _known[name] = Counter(name, COUNTERS[name], tag_keys=("run", "kind"))
    return _known[name]


def _histogram(name: str) -> Any:
    if name not in _known:
        _known[name] = Histogram(name, HISTOGRAMS[name], boundaries=BUCKETS_S, tag_keys=("run", "phase"))
    return _known[name]
