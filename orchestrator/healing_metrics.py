"""The declarations of the metrics of failures that a run survives, and of the times that it goes back.

They are a part of `orchestrator.metrics`.
"""

from __future__ import annotations

from orchestrator.metric_types import Fact, Metric, Shown

HEALING_METRICS = (
    Metric(
        "healing/engine_restarts",
        "",
        "Engines that failed and were started again since the step before; missing in a step without one",
        shown=Shown("engine restarts", "{:.0f}"),
        facts=(Fact("Engine restarts", "sum"),),
    ),
    Metric("healing/prompts_moved", "", "Prompts that engines left when they failed, and that others answered"),
    Metric(
        "healing/run_restarts",
        "",
        "Times that all roles were started again before this step, since a trained rank failed; missing otherwise",
        shown=Shown("run restarts", "{:.0f}"),
        facts=(Fact("Restarts of the run", "sum"),),
    ),
    Metric(
        "healing/frozen_restarts",
        "",
        "Groups of frozen ranks that were started again since the step before; missing in a step without one",
        shown=Shown("frozen restarts", "{:.0f}"),
        facts=(Fact("Restarts of frozen groups", "sum"),),
    ),
    Metric(
        "healing/rollbacks",
        "",
        "Times that the run went back to an earlier step before this one, since an alert said so; missing otherwise",
        shown=Shown("rollbacks", "{:.0f}"),
        facts=(Fact("Rollbacks", "sum"),),
    ),
)
