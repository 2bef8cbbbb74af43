"""One self-contained HTML page from the files of a run: it loads nothing, and escapes all text of the run.

`report.html.jinja`, `colours.css`, `report.css` and `report.js` determine how the page looks; this module computes its
contents. The page can be made from the folder of any run, also of a crashed one.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined

from orchestrator.display_text import decimal_text, decimals_of, duration, number, percent, printable
from orchestrator.known_metrics import metrics_in
from orchestrator.metric_types import Fact, Metric
from orchestrator.metrics import METRICS
from orchestrator.report.charts import evaluation_cards, gap_cards, histogram_cards, reliability_cards, training_cards
from orchestrator.report.evaluation_results import EvaluationChange, EvaluationResult, SampleRow, evaluation_changes
from orchestrator.report.run_files import HTML_FILE, RunRecord, kept_scores, read_record, replace_text


class SampleTable(NamedTuple):
    """Responses to the same prompts at several times."""

    names: list[str]
    """Headers of the columns after the prompt, one for each response."""
    rows: list[tuple[SampleRow, list[SampleRow | None]]]
    """(row with the prompt, the responses to it); None for a missing response."""


def render_report(run_dir: str | Path, output: Path | None = None, now: str = "") -> Path:
    """Write the page from the files that exist, by default `report.html` into `run_dir`; returns its path. `now`: see
    `run_status`."""
    path = Path(run_dir) / HTML_FILE if output is None else output
    record = read_record(Path(run_dir))
    ends = [result for result in _ends(record.evaluations, record.state.best) if result]
    scores = kept_scores(Path(run_dir)) or {f"held out, {one.label}": one.proxy_values for one in ends}
    replace_text(path, page(record, scores, now))
    return path


def page(record: RunRecord, scores: Mapping[str, Sequence[float]] | None = None, now: str = "") -> str:
    """The HTML of the whole page. `scores`: sets of scores whose distributions are drawn, by name; `now`: see
    `run_status`."""
    evaluations, metrics = record.evaluations, record.metrics
    before, after = _ends(evaluations, record.state.best)
    status, status_text = run_status(record, now)
    last = int(metrics[-1]["step"]) if metrics else 0
    cards = {
        "training_cards": [
            *training_cards(record),
            *histogram_cards(scores or {}),
            *reliability_cards(record.state.reliability),
        ],
        "evaluation_cards": [*evaluation_cards(record.heldout_sets), *gap_cards(evaluations)]
        if len(evaluations) > 2
        else [],
    }
    scripts = drawing_scripts() if any(card.figure for found in cards.values() for card in found) else []
    return page_template("report.html.jinja").render(
        **cards,
        state=record.state,
        status=status,
        status_text=status_text,
        facts=_facts(record),
        made_on=made_on(record),
        before=before,
        after=after,
        changes=evaluation_changes(before, after) if before and after else [],
        alerts=record.alerts,
        set_name=before.name if before else "",
        other_sets={name or "heldout": _measured(own, record.state.best) for name, own in record.other_sets.items()},
        heldout=sample_table({result.label: result for result in (before, after) if result}),
        trained=SampleTable([f"step {last}"], [(row, [row]) for row in record.samples]),
        metrics=_all_metrics(metrics),
        config_yaml=record.config_yaml,
        style=page_style(),
        scripts=scripts,
        policy=content_policy(scripts),
    )


@cache
def page_template(name: str) -> Any:
    """The template of a page, a file of this folder; it escapes all text."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_without_control,
        loader=FunctionLoader(own_file),
    )
    environment.globals |= {
        "decimals_of": decimals_of,
        "decimal_text": decimal_text,
        "number": number,
        "percent": percent,
        "nothing": "\N{EN DASH}",
        "zip": zip,
    }
    return environment.get_template(name)


def _without_control(value: Any) -> Any:
    """`value` with characters replaced that could change the page or its text direction."""
    is_markup = hasattr(value, "__html__")
    return printable(value, keep="\n\t") if isinstance(value, str) and not is_markup else value


def own_file(name: str) -> str:
    """The text of a file of this folder."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def page_style() -> str:
    """The style sheet of a page."""
    return own_file("colours.css") + own_file("report.css")


def drawing_scripts() -> list[str]:
    """Plotly's script and the one that draws with it."""
    from plotly.offline import get_plotlyjs

    return [get_plotlyjs(), own_file("report.js")]


def content_policy(scripts: list[str]) -> str:
    """Content-Security-Policy: nothing is loaded and only these scripts run, whatever the run's texts contain."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    sources = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {allowed}"
    return f"{sources}; form-action 'none'; base-uri 'none'"


def run_status(record: RunRecord, now: str = "") -> tuple[str, str]:
    """CSS class and text of the run's status. `now`: the state that the run is in, such as `running` or `interrupted`;
    empty: only its files are known, as to a run that writes its own page, which stays when it is killed."""
    state = record.state
    if now == "running":
        return "running", f"running, {_steps_done(record)}"
    last = int(record.metrics[-1]["step"]) if record.metrics else 0
    if state.status == "done":
        return "done", f"ended early, {_steps_done(record)}" if state.ended else "done"
    if state.status == "failed":
        return "failed", f"failed after step {last}" if last else "failed before the first step ended"
    word = now or ("unfinished" if state.status == "running" else state.status)
    return "unfinished", f"{word}, {_steps_done(record)}"


def _steps_done(record: RunRecord) -> str:
    """Such as `3 of 10 steps`, or `1 step`."""
    done = _done(record)
    return f"{done} step{'' if done.split()[-1] == '1' else 's'}"


def _done(record: RunRecord) -> str:
    """Steps that are done, and of how many, such as `3 of 10`, if that was known before the run ended."""
    steps = record.state.steps
    return f"{int(record.metrics[-1]['step']) if record.metrics else 0}{f' of {steps}' if steps else ''}"


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    state, metrics = record.state, record.metrics
    found = [("Steps", _done(record))]
    for metric in METRICS.values():
        values = [m[metric.key] for m in metrics if math.isfinite(m.get(metric.key, math.nan))] if metric.facts else []
        found += [(fact.name, _fact(fact, metric.unit, values)) for fact in metric.facts if values]
    if state.best is not None:
        found.append(("Models left", f"of step {state.best}, the best gold score"))
    if state.started:
        found.append(("Started", state.started.replace("T", " ").replace("+00:00", " UTC")))
    return found


def made_on(record: RunRecord) -> list[tuple[str, str]]:
    """Name and text of data, models, machine, code and versions, as far as the run says them."""
    state = record.state
    found = {**state.facts, "Versions": ", ".join(f"{name} {text}" for name, text in state.versions.items())}
    data = next((line for line in state.data if line.strip()), "")
    return [(name, text) for name, text in {"Data": data, **found}.items() if text]


def _fact(fact: Fact, unit: str, values: list[float]) -> str:
    whole: dict[str, Callable[[list[float]], float]] = {"sum": math.fsum, "median": median, "max": max}
    value = whole[fact.of](values)
    return duration(value) if unit == "s" and fact.of == "sum" else f"{number(value)} {unit}".strip()


def _ends(
    evaluations: list[EvaluationResult], best: int | None
) -> tuple[EvaluationResult | None, EvaluationResult | None]:
    """The evaluation before training (or the first one), and that of the models which the run leaves: of step `best`,
    or the last one after it."""
    if not evaluations:
        return None, None
    before = next((e for e in evaluations if e.label == "before"), evaluations[0])
    after = next((e for e in reversed(evaluations) if e.step == best), evaluations[-1])
    return before, after if after is not before else None


def _measured(
    evaluations: list[EvaluationResult], best: int | None
) -> tuple[EvaluationResult | None, EvaluationResult | None, list[EvaluationChange]]:
    """The two ends of a set, and what changed between them."""
    before, after = _ends(evaluations, best)
    return before, after, evaluation_changes(before, after) if before and after else []


def sample_table(named: Mapping[str, EvaluationResult]) -> SampleTable:
    """The prompts of the last evaluation with the responses in every evaluation, by the headings of their columns."""
    rows, results = [], list(named.values())
    for place, row in enumerate(results[-1].samples if results else []):
        answers = [result.samples[place] if place < len(result.samples) else None for result in results]
        rows.append((row, [answer if answer and answer.prompt == row.prompt else None for answer in answers]))
    return SampleTable(list(named), rows)


def _all_metrics(metrics: list[dict[str, float]]) -> list[tuple[Metric, tuple[float, float, float, float]]]:
    """The first, last, lowest and highest value of each metric."""
    rows = []
    for key, metric in metrics_in(key for step in metrics for key in step).items():
        values = [m[key] for m in metrics if key in m]
        if values and key != "step":
            finite = [v for v in values if math.isfinite(v)] or [math.nan]
            rows.append((metric, (values[0], values[-1], min(finite), max(finite))))
    return rows
