"""The report of several runs: their curves over each other, what they reached, and where their settings differ.

The folders of runs flow in; one page that loads nothing flows out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from orchestrator.display_text import decimal_text, decimals_of
from orchestrator.report.charts import run_cards
from orchestrator.report.page import content_policy, drawing_scripts, made_on, page_style, page_template, run_status
from orchestrator.report.run_files import CONFIG_FILE, RunRecord, read_record, replace_text
from orchestrator.report.terminal_lines import shown

RUNS_HTML = "comparison.html"


def render_runs(run_dirs: Sequence[Path], output: Path | None = None, now: Sequence[str] = ()) -> Path:
    """Write the page, by default into the first folder; returns its path. ValueError names a file that is damaged.
    `now`: the state that each run is in, see `run_status`."""
    path = run_dirs[0] / RUNS_HTML if output is None else output
    names = _names(run_dirs)
    states = dict(zip(names, now, strict=False))
    replace_text(path, runs_page(dict(zip(names, map(read_record, run_dirs), strict=True)), states))
    return path


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """The folders' names; with what is around them, where names alone do not tell them apart."""
    names = [run.resolve().name for run in run_dirs]
    alike = len(set(names)) < len(names)
    return [f"{place} {run}" for place, run in enumerate(run_dirs, 1)] if alike else names


def runs_page(records: Mapping[str, RunRecord], states: Mapping[str, str] | None = None) -> str:
    """The HTML of the page. `states`: the state that each run is in, see `run_status`."""
    cards, states = run_cards(records), states or {}
    scripts = drawing_scripts() if any(card.figure for card in cards) else []
    return str(
        page_template("runs.html.jinja").render(
            runs=list(records),
            statuses=[run_status(record, states.get(name, "")) for name, record in records.items()],
            facts=_facts(list(records.values())),
            reached=_reached(list(records.values())),
            settings=_settings([record.config_yaml for record in records.values()]),
            cards=cards,
            style=page_style(),
            scripts=scripts,
            policy=content_policy(scripts),
        )
    )


def _facts(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Name → fact of each run."""
    told = [{**dict(made_on(record)), "Started": record.state.started.replace("T", " ")} for record in records]
    names = dict.fromkeys(name for facts in told for name in facts)
    found = {name: [facts.get(name, "") for facts in told] for name in names}
    return {name: texts for name, texts in found.items() if any(texts)}


def _reached(records: Sequence[RunRecord]) -> dict[str, list[str]]:
    """Name → number of each run: of its last step, and of its last evaluation."""
    rows: dict[str, list[str]] = {}
    for place, record in enumerate(records):
        last = [(f"{row.name}, last step", row.value) for row in shown(record.metrics[-1] if record.metrics else {})]
        for name, value in [*last, *_evaluated(record)]:
            rows.setdefault(name, [""] * len(records))[place] = value
    return rows


def _evaluated(record: RunRecord) -> Iterator[tuple[str, str]]:
    """Of each set of held-out prompts by its name: runs can differ in the set that compares their steps."""
    for result in (results[-1] for results in record.heldout_sets.values() if results):
        held_out = f"held out, {result.name}" if result.name else "held out"
        measures = {"gold score": result.gold, "proxy score": result.proxy, "KL": result.kl, "length": result.length}
        for name, one in measures.items():
            if one is not None:
                decimals = decimals_of(one.standard_error)
                error = f" ± {decimal_text(one.standard_error, decimals)}" if math.isfinite(one.standard_error) else ""
                yield f"{name}, {held_out}", f"{decimal_text(one.mean, decimals)}{error}"


def _settings(texts: Sequence[str]) -> dict[str, list[str]]:
    """Key → value of each run, of the keys whose values differ."""
    try:
        flat = [dict(_leaves(yaml.safe_load(text) or {}, "")) for text in texts]
    except yaml.YAMLError as error:
        raise ValueError(f"{CONFIG_FILE} of one of the runs is not YAML: {error}; restore it") from None
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = {key: [values.get(key, "") for values in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
