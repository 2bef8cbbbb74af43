"""The page that compares policies: numbers beside numbers counted by hand, and nothing of a text becomes markup."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.report.comparison import ComparedPolicy, Comparison, StageTime, comparison_page, write_comparison
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from tests.unit.outside import outside


def result(gold: list[float], response: str = "fine", prompt: str = "how are you") -> EvaluationResult:
    return EvaluationResult(
        step=0,
        label="untrained",
        prompts=len(gold),
        proxy=Estimate.of(gold),
        gold=Estimate.of(gold),
        kl=Estimate(0.5, 0.1),
        length=Estimate(7.0, 1.0),
        truncated_fraction=0.25,
        samples=[SampleRow(prompt, response, 1.0, gold[0], 0.5, True)],
        proxy_values=gold,
        gold_values=gold,
    )


def comparison(*results: EvaluationResult, price: float | None = None) -> Comparison:
    stages = [
        StageTime("sft", "sft", "runs/sft", (), 100.0),
        StageTime("dpo", "dpo", "runs/dpo", ("sft",), 260.0),
        StageTime("measured", "evaluate", "runs/m", ("dpo",), 1000.0),
    ]
    made_by = (("sft",), ("sft", "dpo"))
    columns = [
        ComparedPolicy(heading, "measured", one, made)
        for heading, one, made in zip(("SFT", "DPO <b>"), results, made_by, strict=True)
    ]
    return Comparison("mine", columns, stages, price, samples=4)


def test_numbers_and_differences(tmp_path: Path) -> None:
    page = write_comparison(tmp_path, comparison(result([0.0, 0.2, 0.4]), result([0.5, 0.6, 0.7]), price=36.0))
    found = json.loads((tmp_path / "report.json").read_text())
    sft, dpo = found["compared"]["SFT"], found["compared"]["DPO <b>"]
    assert sft["gold_score"]["mean"] == pytest.approx(0.2) and sft["difference_from_first"] == {}
    difference = dpo["difference_from_first"]["gold_score"]
    assert difference["mean"] == pytest.approx(0.4)
    assert difference["standard_error"] == pytest.approx(0.1 / math.sqrt(3)), "prompt by prompt: .5, .4, .3"
    assert (sft["seconds"], dpo["seconds"], dpo["money"]) == (100.0, 360.0, pytest.approx(3.6))
    assert page == tmp_path / "report.html" and '<td class="number">3.60</td>' in page.read_text()


def test_texts_are_escaped_and_no_script_may_run() -> None:
    attack = "<script>alert(1)</script>\u202e"
    page = comparison_page(comparison(result([0.1, 0.2]), result([0.1, 0.3], attack, attack)))
    assert outside(page) == []
    assert "<script" not in page and "DPO <b>" not in page and "\u202e" not in page
    assert "&lt;script&gt;" in page and "script-src &#39;none&#39;" in page


def test_a_response_to_another_prompt_is_not_put_beside() -> None:
    page = comparison_page(comparison(result([0.1], "theirs", "another prompt"), result([0.1], "ours")))
    assert "theirs" not in page and "ours" in page


def test_different_numbers_of_prompts_are_said_so() -> None:
    page = comparison_page(comparison(result([0.1, 0.2]), result([0.1])))
    assert "Not all were measured on the same prompts" in page and "NaN" not in page


def test_another_set_of_prompts_is_not_compared(tmp_path: Path) -> None:
    of_math = replace(result([0.5, 0.6, 0.7]), name="math")
    page = write_comparison(tmp_path, comparison(result([0.0, 0.2, 0.4]), of_math)).read_text()
    found = json.loads((tmp_path / "report.json").read_text())["compared"]["DPO <b>"]
    assert (found["set"], found["difference_from_first"]) == ("math", {})
    row = page.split('<th scope="row">Set of prompts</th>')[1].split("</tr>")[0]
    assert re.findall(r">([^<>]+)</td>", row) == ["heldout", "math"]
    assert "those of another set are not compared" in page and "The same held-out prompts" not in page
