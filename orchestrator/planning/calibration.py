"""`tetrarch plan --calibrate`: the share of the published rates that a run of the user has reached.

A run's metrics flow in, an Efficiency (and a file of it) flows out.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from cluster.config import BesideCounted, Correction, Efficiency
from cluster.counts import counted
from cluster.estimate.memory import GIB
from orchestrator.config.loading import load_config
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError
from orchestrator.metrics import LENGTH_QUANTILES
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.layout_planner import layout
from orchestrator.planning.loads import PHASE_NAMES
from orchestrator.planning.planned_layout import PlannedLayout
from orchestrator.planning.predicted_step import machine_rates

FITTED = "efficiency.yaml"
"""Name of the file in the `run_dir` of a measured run."""
CORRECTED_PHASES = tuple(Correction.model_fields)
MOST_MEASURED = 1e12
"""No time, length or size of a run is as large."""
SAMPLING_ROUNDS = "sampling/rounds"
CUT_SHARE = "response/truncated_fraction"
WARM_UP = 1
"""Number of steps at the start of a run that are not measured, if there are more."""


def calibrated(run_dir: Path) -> Efficiency:
    """The shipped factors, corrected so that the prediction for the run in `run_dir` equals its measurements.

    Medians over the run's steps (also of the lengths), and the most memory that a card held in each phase; written to
    `run_dir/efficiency.yaml`. ConfigError if the run has no steps, or some that sampled more than once.
    """
    steps = _measured(run_dir)
    config = load_config(run_dir / "config.yaml")
    shipped = load_efficiency()
    plain = shipped.model_copy(update=_lengths(steps, config) | _machine(config, shipped))
    planned = layout(config, plain)
    predicted = planned.step.phases
    measured = {phase: median(step[f"time/{phase}_s"] for step in steps) for phase in predicted}
    ratios = {phase: float(f"{measured[phase] / of:.4g}") if of else 1.0 for phase, of in predicted.items()}
    data = {**plain.model_dump(), "correction": ratios, "beside_gib": _beside(steps, planned)}
    header = f"# Fitted to {counted(len(steps), 'step')} of {run_dir.name} by `tetrarch plan --calibrate`.\n"
    efficiency = Efficiency.model_validate(data)
    try:
        (run_dir / FITTED).write_text(header + yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--calibrate {run_dir}: {run_dir / FITTED} cannot be written: {error.strerror}") from None
    return efficiency


def _machine(config: RunConfig, shipped: Efficiency) -> dict[str, Any]:
    """The rates of this machine, for a run without GPUs: a later plan does not measure them anew."""
    if config.device != "cpu":
        return {}
    operations, memory = machine_rates(config.dtype, shipped)
    known = {"gflops": {config.dtype: round(operations / 1e9, 3)}, "memory_gb_s": round(memory / 1e9, 3)}
    return {"cpu": shipped.cpu.model_copy(update=known)}


def _beside(steps: list[dict[str, Any]], planned: PlannedLayout) -> dict[str, float]:
    """Phase → memory of the fullest card in GiB, measured minus planned; empty without GPUs."""
    found = {}
    for name in BesideCounted.model_fields:
        held = [step[key] for step in steps if _measures(step.get(key := f"memory/gpu_{name}_gib"))]
        counted = [
            sum(load.phases[phase].values()) / GIB
            for load in planned.gpus
            for phase, metric in PHASE_NAMES.items()
            if metric == name and phase in load.phases
        ]
        if held and counted:
            found[name] = round(max(held) - max(counted), 2)
    return found


def _lengths(steps: list[dict[str, Any]], config: RunConfig) -> dict[str, Any]:
    """Means and quantiles of lengths as shares of their limits; those that a run did not measure stay assumed."""

    def share(key: str, limit: int) -> float:
        return min(max(round(median(step[key] for step in steps) / limit, 4), 1e-4), 1.0)

    found: dict[str, Any] = {"response_share": share("response/length_mean", config.longest_response)}
    keys = ["prompt/length_mean", *LENGTH_QUANTILES]
    if all(_measures(step.get(key)) for step in steps for key in keys):
        found["prompt_share"] = share(keys[0], config.longest_sample - config.longest_response)
        quantiles = {part: share(key, config.longest_response) for key, part in LENGTH_QUANTILES.items()}
        said = [step[CUT_SHARE] for step in steps if _measures(step.get(CUT_SHARE))]
        cut = min(median(said or [0.0]), 1.0)
        found["response_quantiles"] = dict(sorted(({round(1 - cut, 4): 1.0} | quantiles).items())) if cut else quantiles
        found["response_limit"] = config.longest_response
    return found


def _measured(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    try:
        steps = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--calibrate {run_dir}: {path} cannot be read: {error}; name the run_dir of a run"
        ) from error
    needed = ["lr/actor", "response/length_mean", *(f"time/{phase}_s" for phase in CORRECTED_PHASES)]
    whole = [step for step in steps if isinstance(step, dict) and all(_measures(step.get(key)) for key in needed)]
    if not whole:
        raise ConfigError(f"--calibrate {run_dir}: it has no step in which the actor was trained; name another run")
    rounds = max((step[SAMPLING_ROUNDS] for step in whole if _measures(step.get(SAMPLING_ROUNDS))), default=1)
    if rounds > 1:
        raise ConfigError(
            f"--calibrate {run_dir}: ppo.dynamic_sampling has drawn prompts up to {rounds:g} times in a step, and the "
            "prediction is for one; name a run with ppo.dynamic_sampling=null"
        )
    return whole[WARM_UP:] or whole


def _measures(value: Any) -> bool:
    """Whether it can be a time, a length or a size."""
    return isinstance(value, int | float) and 0 <= value < MOST_MEASURED
