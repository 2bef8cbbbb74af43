from __future__ import annotations

import pytest

from orchestrator.metrics import METRICS, PHASES, check_known, metrics_table_markdown, phase_name
from tests.readmes import EVERYTHING


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
    assert [phase_name(key) for key in PHASES] == ["generate", "score", "experience", "update", "push"]


def test_an_undescribed_metric_is_named() -> None:
    check_known(["score/mean"])
    with pytest.raises(ValueError, match="policy/typo"):
        check_known(["score/mean", "policy/typo"])
