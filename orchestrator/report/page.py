"""One self-contained HTML page from the files of a run. No script, no outside resource; all text is escaped.

`orchestrator.report.reporter` calls `render_report` when a run ends; it can be called for any run folder, of a crashed
run too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

from orchestrator.formats import clock, decimals_of, fixed, number, percent
from orchestrator.metric_types import Fact
from orchestrator.metrics import METRICS
from orchestrator.report.charts import evaluation_curves, training_curves
from orchestrator.report.files import HTML, RunRecord, read_record
from orchestrator.report.results import Estimate, EvaluationResult, SampleRow, changes
from orchestrator.report.style import STYLE
from orchestrator.report.svg import escape

_NOTHING = "\N{EN DASH}"


def render_report(run_dir: str | Path) -> Path:
    """Write `report.html` into `run_dir` from the files that are there; returns its path."""
    path = Path(run_dir) / HTML
    partial = path.with_suffix(".partial")
    partial.write_text(page(read_record(Path(run_dir))), encoding="utf-8")
    partial.replace(path)
    return path


def page(record: RunRecord) -> str:
    """The whole document."""
    name = escape(record.state.name)
    parts = [_header(record), _evaluations(record.evaluations), training_curves(record), _samples(record)]
    body = [*parts, _folded(record)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{name} · Tetrarch</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n<footer>Made by Tetrarch from metrics.jsonl, evaluation.jsonl, samples.jsonl and config.yaml of this run. "
        "Point at a curve to read its values.</footer>\n</body>\n</html>\n"
    )


def _header(record: RunRecord) -> str:
    state, metrics = record.state, record.metrics
    last = int(metrics[-1]["step"]) if metrics else 0
    style, word = {
        "done": ("done", "done"),
        "failed": ("failed", f"failed after step {last}" if last else "failed before the first step ended"),
    }.get(state.status, ("unfinished", f"unfinished, {last} of {state.steps} steps"))
    facts = [("Steps", f"{last} of {state.steps}")]
    for metric in METRICS.values():
        values = _finite(metrics, metric.key) if metric.facts else []
        facts += [(fact.name, _fact(fact, metric.unit, values)) for fact in metric.facts if values]
    if state.started:
        facts.append(("Started", state.started.replace("T", " ").replace("+00:00", " UTC")))
    rows = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in facts)
    trouble = ""
    if state.error:
        trouble = f'<div class="trouble"><strong>What ended it</strong><pre>{escape(state.error)}</pre></div>'
    return (
        f'<header>\n<p class="brand">{_brand(state.title)}</p>\n<div class="title"><h1>{escape(state.name)}</h1>'
        f'<span class="pill {style}">{escape(word)}</span></div>\n<dl class="facts">{rows}</dl>{trouble}\n</header>'
    )


def _fact(fact: Fact, unit: str, values: list[float]) -> str:
    whole: dict[str, Callable[[list[float]], float]] = {"sum": math.fsum, "median": median, "max": max}
    value = whole[fact.of](values)
    return clock(value) if unit == "s" and fact.of == "sum" else f"{number(value)} {unit}".strip()


def _brand(title: str) -> str:
    return f"Tetrarch · {escape(title)}" if title else "Tetrarch"


def _evaluations(evaluations: list[EvaluationResult]) -> str:
    if not evaluations:
        return ""
    before, after = _ends(evaluations)
    parts = ["<section>\n<h2>Held-out evaluation</h2>"]
    parts.append(_comparison(before, after) if after else _single(before))
    if len(evaluations) > 2:
        parts.append(f'<div class="charts under">{evaluation_curves(evaluations)}</div>')
    return "\n".join([*parts, "</section>"])


def _ends(evaluations: list[EvaluationResult]) -> tuple[EvaluationResult, EvaluationResult | None]:
    """The evaluation before training (or the first there is) and the last one after it."""
    before = next((e for e in evaluations if e.label == "before"), evaluations[0])
    after = evaluations[-1] if evaluations[-1] is not before else None
    return before, after


_GLOSSARY = (
    "Proxy score: of the reward that training maximises (<code>reward</code> in the configuration). Gold score: of the "
    "judge that training never sees (<code>evaluation.judge</code>). Truncated: cut by the limit of tokens."
)


def _comparison(before: EvaluationResult, after: EvaluationResult) -> str:
    rows = []
    paired = False
    for change in changes(before, after):
        difference, z = change.difference, change.difference.z
        paired = paired or change.paired
        sure = '<span class="sure">{}</span>' if abs(z) > 2 else "{}"
        times = _NOTHING if math.isnan(z) else sure.format(fixed(z, 1, plus=True))
        unit = f'<span class="unit">{escape(change.unit)}</span>' if change.unit else ""
        rows.append(
            f'<tr><th scope="row">{escape(change.name[0].upper() + change.name[1:])}{unit}</th>'
            f'<td class="number">{_estimate(change.before)}</td><td class="number">{_estimate(change.after)}</td>'
            f'<td class="number change">{_estimate(difference, plus=True)}</td>'
            f'<td class="number">{times}</td></tr>'
        )
    cut, cut_after = before.truncated_fraction, after.truncated_fraction
    points = f'{fixed((cut_after - cut) * 100, 1, plus=True)}<span class="unit">points</span>'
    rows.append(
        f'<tr><th scope="row">Truncated responses</th><td class="number">{percent(cut)}</td>'
        f'<td class="number">{percent(cut_after)}</td><td class="number change">{points}</td>'
        f'<td class="number">{_NOTHING}</td></tr>'
    )
    how = "Score differences are taken prompt by prompt. " if paired else ""
    head = "".join(
        f'<th scope="col" class="number">{escape(text)}</th>'
        for text in (before.label.capitalize(), after.label.capitalize(), "Difference", "Standard errors")
    )
    return (
        '<div class="card scroll" tabindex="0" role="region" aria-label="Evaluation before and after">'
        f'<table class="headline"><thead><tr><th scope="col">Measure</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>\n"
        f'<p class="soft under">{after.prompts} prompts that were never trained on; mean ± standard error. '
        f"{how}The last column is the difference in units of its standard error; beyond two it is marked. "
        f"{_GLOSSARY}</p>"
    )


def _single(result: EvaluationResult) -> str:
    measures = [("Gold score", result.gold), ("Proxy score", result.proxy)]
    measures += [("KL to the reference, nats", result.kl), ("Response length, tokens", result.length)]
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="number">{_estimate(estimate)}</td></tr>'
        for name, estimate in measures
        if estimate is not None
    )
    return (
        f'<div class="card scroll"><table class="headline"><thead><tr><th scope="col">Measure</th>'
        f'<th scope="col" class="number">{escape(result.label.capitalize())}</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>\n"
        f'<p class="soft under">{result.prompts} prompts that are never trained on; mean ± standard error. '
        f"{_GLOSSARY}</p>"
    )


def _samples(record: RunRecord) -> str:
    parts = []
    if record.evaluations:
        before, after = _ends(record.evaluations)
        rows = after.samples if after else before.samples
        if rows:
            answers = [before.samples, after.samples] if after else [before.samples]
            names = [before.label, after.label] if after else [before.label]
            parts.append(
                f"<section>\n<h2>{'The same prompts, before and after' if after else 'Samples'}</h2>\n"
                '<p class="soft">The first of the held-out prompts: not chosen for how they came out.</p>\n'
                f'<div class="card">{_sample_table(names, answers)}</div>\n</section>'
            )
    if record.samples:
        step = int(record.metrics[-1]["step"]) if record.metrics else 0
        table = _sample_table([f"step {step}"], [record.samples])
        parts.append(f'<details class="card"><summary>Responses of the last training step</summary>{table}</details>')
    return "\n".join(parts)


def _sample_table(names: list[str], answers: list[list[SampleRow]]) -> str:
    head = "".join(f'<th scope="col">{escape(name.capitalize())}</th>' for name in ("prompt", *names))
    rows = []
    for place, row in enumerate(answers[-1]):
        cells = [f'<td data-label="Prompt"><div class="words" dir="auto">{escape(row.prompt)}</div></td>']
        for name, samples in zip(names, answers, strict=True):
            same = place < len(samples) and samples[place].prompt == row.prompt
            answer = _sample(samples[place]) if same else _NOTHING
            cells.append(f'<td data-label="{escape(name.capitalize())}">{answer}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table class="samples"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _sample(row: SampleRow) -> str:
    scores = [] if row.gold is None else [f"gold {fixed(row.gold, 2, plus=True)}"]
    scores += [f"proxy {fixed(row.proxy, 2, plus=True)}", f"KL {fixed(row.kl, 1)} nats"]
    chips = "".join(f"<span>{escape(score)}</span>" for score in scores)
    cut = "" if row.finished else '<span class="cut">truncated</span>'
    text = escape(row.response) if row.response.strip() else '<span class="soft">(empty)</span>'
    return f'<div class="scores">{chips}{cut}</div><div class="words" dir="auto">{text}</div>'


def _folded(record: RunRecord) -> str:
    parts = []
    if record.metrics:
        parts.append(f'<details class="card"><summary>All metrics</summary>{_all_metrics(record.metrics)}</details>')
    if record.config_yaml:
        parts.append(
            '<details class="card"><summary>Configuration</summary><div class="scroll" tabindex="0" role="region" '
            f'aria-label="Configuration"><pre>{escape(record.config_yaml)}</pre></div></details>'
        )
    return "\n".join(parts)


def _all_metrics(metrics: list[dict[str, float]]) -> str:
    rows = []
    for key in (key for key in METRICS if key != "step"):
        values = [m[key] for m in metrics if key in m]
        if values:
            finite = [v for v in values if math.isfinite(v)] or [math.nan]
            shown = (values[0], values[-1], min(finite), max(finite))
            cells = "".join(f'<td class="number">{number(v)}</td>' for v in shown)
            about = f'<td class="soft about-it">{escape(METRICS[key].description)}</td>'
            unit = f'<span class="unit">{escape(METRICS[key].unit)}</span>' if METRICS[key].unit else ""
            rows.append(f'<tr><th scope="row"><code>{escape(key)}</code>{unit}</th>{cells}{about}</tr>')
    heads = "".join(f'<th scope="col" class="number">{h}</th>' for h in ("First", "Last", "Lowest", "Highest"))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="All metrics"><table class="all"><thead><tr>'
        f'<th scope="col">Metric</th>{heads}<th scope="col" class="about-it">Meaning</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _estimate(estimate: Estimate, plus: bool = False) -> str:
    error = estimate.standard_error
    decimals = decimals_of(error)
    known = "" if math.isnan(error) else f'<span class="error-of">± {fixed(error, decimals)}</span>'
    return fixed(estimate.mean, decimals, plus) + known


def _finite(metrics: list[dict[str, float]], key: str) -> list[float]:
    return [m[key] for m in metrics if key in m and math.isfinite(m[key])]
