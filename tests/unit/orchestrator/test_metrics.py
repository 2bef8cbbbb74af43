from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.known_metrics import check_known, metric_of, metrics_in
from orchestrator.metric_types import Bands, Chart, Fact, Metric, Shown
from orchestrator.metrics import METRICS, metrics_table_markdown
from orchestrator.report.reporter import Reporter
from orchestrator.report.run_files import read_record
from orchestrator.tracking.metric_aliases import ALIASES
from roles.measured import measured, metric
from tests.readmes import EVERYTHING

ROOT = Path(__file__).parents[3]
GROUPS = {key.split("/")[0] for key in METRICS if "/" in key}


def test_readme_has_the_metric_table() -> None:
    assert metrics_table_markdown() in EVERYTHING, (
        "a README must hold the table that orchestrator.metrics.metrics_table_markdown() prints"
    )


def test_no_key_is_described_twice() -> None:
    rows = metrics_table_markdown().splitlines()[2:]
    assert len(rows) == len(METRICS) == len({row.split("|")[1] for row in rows})


def test_a_bar_in_a_description_does_not_break_the_table() -> None:
    for row in metrics_table_markdown().splitlines():
        assert row.replace("\\|", "").count("|") == 4, row


def test_phases_leave_out_what_overlaps_them() -> None:
    phases = [metric for metric in METRICS.values() if metric.chart is not None and metric.chart.stacked]
    of_a_step = ["generate", "score", "experience", "update", "push", "evaluate"]
    assert [metric.label for metric in phases] == [*of_a_step, "label", "retrain"]
    assert [f"time/{metric.label}_s" for metric in phases] == [metric.key for metric in phases]
    assert all(metric.doing for metric in phases), "the user reads what the run is doing"


def test_an_undeclared_metric_is_named() -> None:
    check_known(["score/mean"])
    with pytest.raises(ValueError, match="policy/typo"):
        check_known(["score/mean", "policy/typo"])


def test_metrics_that_a_run_names_itself_are_known_by_their_form() -> None:
    check_known(["reward/format_ok/mean", "reward/helpful/tone/std", "environment/solved/mean", "score/helpful/mean"])
    for wrong in ("reward/format_ok", "reward//mean", "policy/format_ok/mean", "score/mean/max", "score/mean/"):
        with pytest.raises(ValueError, match=f"metric {wrong} is not declared"):
            check_known([wrong])
    members = [metric_of(f"score/{name}/mean") for name in ("a", "b")]
    assert members[0] and members[1] and members[0].chart == members[1].chart and members[0].label == "a"
    found = metrics_in(["reward/z/mean", "objective/kl", "reward/a/mean", "typo", "score/mean"])
    assert list(found) == ["score/mean", "objective/kl", "reward/z/mean", "reward/a/mean"]
    assert found["score/mean"] is METRICS["score/mean"]


def keys_in(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            group, _, rest = node.value.partition("/")
            if group in GROUPS and re.fullmatch(r"\w*[a-z0-9]", rest):
                yield node.value


def test_every_key_in_the_code_is_declared() -> None:
    sources = {source for package in ("orchestrator", "roles", "cluster") for source in (ROOT / package).rglob("*.py")}
    found = {key: source for source in sources - {ROOT / "orchestrator/metrics.py"} for key in keys_in(source)}
    assert len(found) > 30
    assert {key: source for key, source in found.items() if key not in METRICS and key not in ALIASES} == {}
    assert set(ALIASES.values()) <= set(METRICS)
    assert not set(ALIASES) & set(METRICS), "an alias is a name of another framework"


@dataclass(frozen=True)
class Stats:
    loss: float = metric("policy/loss")
    disagreement: float | None = metric("score/disagreement")
    note: str = "no metric"


def test_a_field_is_measured_by_its_name() -> None:
    assert measured(Stats(0.5, None)) == {"policy/loss": 0.5}
    assert measured(Stats(0.5, 0.1)) == {"policy/loss": 0.5, "score/disagreement": 0.1}
    assert measured(None) == {}


def test_a_declared_metric_is_shown_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the README of the orchestrator says: it is declared once, and measured."""
    declared = Metric(
        "reward/surprise",
        "nats",
        "How surprised the judge was",
        Chart("Surprise"),
        shown=Shown("surprise", "{:.1f}", deviation="reward/spread"),
        facts=(Fact("Worst surprise", "max"),),
        bands=Bands(((1.0, "calm"), (9.0, "startled"))),
    )
    for added in (declared, Metric("reward/spread", "", "Standard deviation of the surprise")):
        monkeypatch.setitem(METRICS, added.key, added)
    assert "| `reward/surprise` | nats | How surprised the judge was |" in metrics_table_markdown()

    with Reporter(tmp_path, name="tiny", steps=2, config_yaml="", tensorboard=False) as report:
        report.step(1, {"reward/surprise": 7.0})
        report.step(2, {"reward/surprise": 3.0, "reward/spread": 0.25})

    assert [line["reward/surprise"] for line in read_record(tmp_path).metrics] == [7.0, 3.0]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<h3>Surprise</h3>" in page and "<dt>Worst surprise</dt><dd>7 nats</dd>" in page
    assert "How surprised the judge was." in page
    shown = capsys.readouterr().out
    assert "step 1/2  surprise 7.0 startled" in shown
    assert "step 2/2  surprise 3.0 (sd 0.250)" in shown
