"""What tokens are coloured by: formulas beside their definitions, and what was not recorded."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.config.report import SampleFilesConfig
from orchestrator.viewer.token_numbers import TOKEN_NUMBERS, token_numbers

ROW = {
    "old_logprobs": [-1.0, -0.5, 0.0],
    "reference_logprobs": [-1.5, -0.25, 0.0],
    "rollout_logprobs": [-1.25, -0.5, 0.0],
    "values": [0.5, math.nan, 0.0],
    "returns": [1.0, 2.0, 0.0],
    "advantages": [-1.0, 1.0, 0.0],
    "generated": [True, True, False],
}


def told(row: dict[str, Any], nothing: str = "") -> dict[str, dict[str, Any]]:
    return {one["key"]: one for one in token_numbers(row, nothing)}


def test_the_numbers_of_each_token() -> None:
    found = {key: one.get("values") for key, one in told(ROW).items()}
    k3 = [math.exp(-0.5) - 1 + 0.5, math.exp(0.25) - 1 - 0.25]
    assert found["log_ratio"] == [0.5, -0.25, None]  # what an environment said has no number
    assert found["kl"] == [pytest.approx(k3[0]), pytest.approx(k3[1]), None]
    assert found["surprisal"] == [1.0, 0.5, None]
    assert found["gap"] == [-0.25, 0.0, None]
    assert found["advantage"] == [-1.0, 1.0, None] and found["return"] == [1.0, 2.0, None]
    assert found["value"] == [0.5, None, None]  # nor has NaN one
    assert found["entropy"] is None


def test_the_sum_of_the_log_ratios_is_the_kl_of_the_sample() -> None:
    row = {name: [one for one in ROW[name][:2]] for name in ("old_logprobs", "reference_logprobs")}
    assert sum(told(row)["log_ratio"]["values"]) == pytest.approx((-1.0 + 1.5) + (-0.5 + 0.25))


def test_a_token_that_the_reference_never_says_has_a_large_kl_and_no_error() -> None:
    row = {"old_logprobs": [-1000.0], "reference_logprobs": [-0.1]}
    (value,) = told(row)["kl"]["values"]
    assert math.isfinite(value) and value > 1e300


def test_what_was_not_recorded_names_the_setting_that_records_it() -> None:
    found = told({"old_logprobs": [-1.0]})
    assert found["surprisal"]["values"] == [1.0]
    said = "not recorded; report.samples.token_columns: [old_logprobs, reference_logprobs] records it"
    assert found["log_ratio"]["missing"] == said and "values" not in found["log_ratio"]
    assert "no setting records it" in found["entropy"]["missing"]
    for one in TOKEN_NUMBERS:  # what the texts say can be set
        assert SampleFilesConfig.model_validate({"token_columns": list(one.needs)})
    assert {one["missing"] for one in token_numbers({}, "evaluations keep none") if one["key"] != "entropy"} == {
        "evaluations keep none"
    }
