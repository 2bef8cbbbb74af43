"""Published steps beside the plan's: the table in cluster/README.md is true, and the factors are fitted as it says."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median

import pytest

from orchestrator.planning.efficiency import load_efficiency
from tests.readmes import READMES
from tests.reference.published import FILE, PHASES, Row, predicted, rows, summary, table

README = READMES["cluster/README.md"]
SHIPPED = load_efficiency()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def known(models: Path) -> dict[str, Row]:
    return {row.name: row for row in rows(models)}


def test_the_readme_shows_what_the_plan_says(models: Path) -> None:
    assert table(SHIPPED, models) in README
    assert summary(SHIPPED, models) in README


def test_the_first_readme_says_how_far_off_seconds_are(models: Path, known: dict[str, Row]) -> None:
    top = " ".join(READMES["README.md"].split())
    ours = known["T1"]
    took, told = (sum(ours.published[phase] for phase in PHASES), predicted(ours, SHIPPED)["step"])
    assert summary(SHIPPED, models).split(" (")[0] in top
    assert f"took {took:.1f} s where {told:.1f} are predicted" in top


def test_rows_that_are_held_out_are_met(known: dict[str, Row]) -> None:
    steps = [row for row in known.values() if "step" in row.published and not row.fitted]
    off = {row.name: abs(predicted(row, SHIPPED)["step"] / row.published["step"] - 1) for row in steps}
    assert len(off) >= 15
    assert median(off.values()) <= 0.15 and max(off.values()) <= 0.30, off


def test_the_factors_fit_the_two_rows_that_they_were_fitted_to(known: dict[str, Row]) -> None:
    assert [row.name for row in known.values() if row.fitted] == ["A1", "B1"]
    measured = known["B1"].published
    found = predicted(known["B1"], SHIPPED)
    assert found["generate"] == pytest.approx(measured["generate"], rel=0.01)  # token_overhead_s
    assert found["push"] == pytest.approx(measured["push"], rel=0.01)  # push_layer_s

    def missed(compute: float) -> float:
        factors = SHIPPED.model_copy(update={"compute": compute})
        first, second = (predicted(known[name], factors) for name in ("A1", "B1"))
        pairs = [(first["step"], known["A1"].published["step"])]
        pairs += [(second[phase], measured[phase]) for phase in ("score", "update")]
        return sum(math.log(told / seen) ** 2 for told, seen in pairs)

    assert missed(SHIPPED.compute) < min(missed(SHIPPED.compute + 0.01), missed(SHIPPED.compute - 0.01))


def test_every_row_names_its_source_and_its_parts_make_up_the_whole(known: dict[str, Row]) -> None:
    for row in known.values():
        assert row.data["source"], row.name
        found = predicted(row, SHIPPED)
        assert set(row.published) <= {"step", *PHASES}
        if "step" in row.published:
            assert found["step"] == pytest.approx(sum(found[phase] for phase in PHASES))
    assert FILE.name in README
