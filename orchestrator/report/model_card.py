"""The model card of a trained model: what a run has written about itself flows in; README.md and curves.svg in the
model's folder flow out, as the model hub and a text editor show them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.counts import counted
from orchestrator.display_text import number, printable
from orchestrator.known_metrics import metrics_in
from orchestrator.report.charts import training_cards
from orchestrator.report.curves_svg import curves_svg
from orchestrator.report.evaluation_results import Estimate
from orchestrator.report.run_files import RunRecord, replace_text

CARD, CURVES = "README.md", "curves.svg"
USED_AS = {
    "actor": ("AutoModelForCausalLM", "text-generation", "a language model"),
    "critic": ("AutoModelForSequenceClassification", "text-classification", "a value model: one number for a text"),
    "reward": ("AutoModelForSequenceClassification", "text-classification", "a reward model: one number for a text"),
}
"""Role → its class in transformers, its task on the model hub, and what it is."""


@dataclass(frozen=True, slots=True)
class CardFacts:
    """What a model card says that is not in the run's files."""

    role: str
    step: int
    config_yaml: str
    """With which the weights were trained, without secrets."""
    base: str
    """The model that training started from: a path or a hub name."""
    on_hub: bool
    """Whether `base` is a hub name."""


def write_model_card(folder: Path, facts: CardFacts, record: RunRecord) -> None:
    """Write the card of the model in `folder`, from what the run had done at the model's step."""
    until = replace(
        record,
        metrics=[line for line in record.metrics if line["step"] <= facts.step],
        evaluations=[one for one in record.evaluations if one.step <= facts.step],
        other_sets={name: [one for one in own if one.step <= facts.step] for name, own in record.other_sets.items()},
    )
    curves = curves_svg(training_cards(until)) if until.metrics else ""
    if curves:
        replace_text(folder / CURVES, curves)
    replace_text(folder / CARD, model_card(facts, until, with_curves=bool(curves)))


def model_card(facts: CardFacts, record: RunRecord, *, with_curves: bool) -> str:
    """The text of the card."""
    state, (loaded_by, task, what) = record.state, USED_AS[facts.role]
    kind = state.title or "training"
    head = ["---", "library_name: transformers", f"pipeline_tag: {task}", f"tags: [tetrarch, {_tag(kind)}]"]
    head += [f"base_model: {facts.base}"] if facts.on_hub else []
    steps = f" of {state.steps}" if state.steps else ""
    lines = [
        *(*head, "---", "", f"# {_plain(state.name)}: {facts.role}, step {facts.step}", ""),
        f"This is {what}, after step {facts.step}{steps} of a run of Tetrarch ({_plain(kind)}). It started from "
        f"{_plain(facts.base)}.",
        *("", "```python", f"from transformers import AutoTokenizer, {loaded_by}", ""),
        *(
            f'model = {loaded_by}.from_pretrained("FOLDER")',
            'tokenizer = AutoTokenizer.from_pretrained("FOLDER")',
            "```",
        ),
        *_section("Data", [f"- {_plain(line)}" for line in state.data]),
        *_section("Evaluations", list(_evaluations(record))),
        *_section("Curves", [f"![curves]({CURVES})"] if with_curves else []),
        *_section(f"Metrics of step {facts.step}", list(_metrics(record, facts.step))),
        *_section("Versions", [", ".join(f"{_plain(name)} {_plain(text)}" for name, text in state.versions.items())]),
        *_section("Models of the hub", [f"- {_plain(key)}: {_plain(name)}" for key, name in state.models.items()]),
        *_section("Configuration", _fenced(facts.config_yaml)),
    ]
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if any(lines) else []


def _evaluations(record: RunRecord) -> Iterator[str]:
    """A table of the evaluations so far, on held-out prompts."""
    found = [*record.evaluations, *(one for own in record.other_sets.values() for one in own)]
    if not found:
        return
    names = any(one.name for one in found)
    yield from (
        f"|{' set |' * names} when | step | prompts | proxy score | gold score | KL (nats) | tokens |",
        f"|{'---|' * names}---|---|---|---|---|---|---|",
    )
    for one in found:
        told = (one.proxy, one.gold, one.kl, one.length)
        numbers = " | ".join("" if estimate is None else _estimate(estimate) for estimate in told)
        own = f" {_plain(one.name or 'heldout')} |" * names
        yield f"|{own} {_plain(one.label)} | {one.step} | {one.prompts} | {numbers} |"


def _estimate(estimate: Estimate) -> str:
    error = f" ± {number(estimate.standard_error)}" if math.isfinite(estimate.standard_error) else ""
    return f"{number(estimate.mean)}{error}"


def _metrics(record: RunRecord, step: int) -> Iterator[str]:
    """A table of what the reports draw, but for times."""
    line = next((line for line in record.metrics if line["step"] == step), {})
    shown = [metric for key, metric in metrics_in(line).items() if metric.chart and not key.startswith("time/")]
    if shown:
        yield from ("| metric | value | meaning |", "|---|---|---|")
    for metric in shown:
        unit = "" if metric.unit in ("", "fraction") else f" {metric.unit}"
        yield f"| `{metric.key}` | {number(line[metric.key])}{unit} | {_plain(metric.description)} |"


def _fenced(yaml: str) -> list[str]:
    """A block of YAML, behind a line to open; its fence is longer than any inside."""
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", yaml)), 3)
    count = counted(len(yaml.splitlines()), "line")
    text = printable(yaml.rstrip("\n"), keep="\n")
    return [f"<details><summary>{count}</summary>", "", f"{fence}yaml", text, fence, "", "</details>"] if text else []


def _plain(text: str) -> str:
    """Text of others on one line, with what Markdown and HTML would read as more than text escaped."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(printable(text).split()))


def _tag(kind: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", kind.lower()).strip("-") or "training"
