"""What is told of a step when it is over: its metrics, and its part of the timeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.errors import ClusterError
from cluster.ranks.usage import WAITS, Usage, drained
from cluster.runtime.ray_metrics import StepOfRun, export_metrics
from orchestrator.config.base import BaseConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.report.reporter import Reporter
from orchestrator.run.phase_clock import Clock
from orchestrator.stages.card_metrics import card_metrics
from orchestrator.stages.stage import StepReport
from orchestrator.timeline.part_of_run import PartOfRun


def usage_told(asked: Callable[[], Usage], tell: Callable[[str], None]) -> Usage:
    """What the ranks have done and used. One that does not say it must not cost a step that is over: if it has died,
    the next call to it ends the run or has it started again."""
    try:
        return asked()
    except ClusterError as error:
        tell(f"the ranks' times and memory are not known: {error}")
        return Usage([], 0.0, [])


def all_metrics(told: StepReport, clock: Clock, usage: Usage, again: Recovery) -> dict[str, float]:
    """The metrics of learning, and those of time, cards, memory and restarts."""
    return {
        **told.metrics,
        **clock.metrics(usage.busy),
        **card_metrics([(who.role, own) for who, own in usage.ranks], clock, told.work),
        "memory/host_peak_gib": usage.host_peak,
        **again.drain(),
    }


def tell_step(
    config: BaseConfig, report: Reporter, told: StepReport, part: PartOfRun, metrics: Mapping[str, float]
) -> None:
    """Report a step, and send it to who only watches the run: Ray's metrics, and the timeline."""
    report.step(part.step, metrics, told.samples, told.ledger, told.keep)
    if config.report.ray_metrics:
        name = Path(config.run_dir).name
        export_metrics(StepOfRun(name, part.step, part.began, part.ended, part.ranks), metrics, report.note)
    report.timeline(part)


def step_part(step: int, clock: Clock, usage: Usage) -> PartOfRun:
    """The step that has ended with its metrics, and all that the ranks have told of since the last part."""
    phases = [(name, began, ended) for name, (began, ended) in clock.spans]
    return PartOfRun(step, clock.began, clock.ended, phases, drained(WAITS), usage.ranks)


def tell_rest(report: Reporter, step: int, asked: Callable[[], Usage]) -> None:
    """Add to the timeline what has happened since the last step, and say what the run has needed."""
    usage, now = usage_told(asked, report.note), time.time()
    report.timeline(PartOfRun(step, now, now, [], drained(WAITS), usage.ranks))
    report.note(f"most host memory in use: {usage.host_peak:.1f} GiB")
