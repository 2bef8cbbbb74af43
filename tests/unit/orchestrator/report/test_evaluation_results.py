from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow, evaluation_changes
from orchestrator.report.run_files import finite


def evaluation(label: str, proxy: list[float], gold: list[float] | None = None, step: int = 0) -> EvaluationResult:
    return EvaluationResult(
        step=step,
        label=label,
        prompts=len(proxy),
        proxy=Estimate.of(proxy),
        gold=None if gold is None else Estimate.of(gold),
        kl=Estimate(1.0, 0.3),
        length=Estimate(20.0, 0.4),
        truncated_fraction=0.25,
        samples=[SampleRow("p", "r", proxy[0], None if gold is None else gold[0], 1.5, True)],
        proxy_values=proxy,
        gold_values=gold,
    )


def test_standard_error_of_a_known_sample() -> None:
    estimate = Estimate.of([1.0, 2.0, 3.0, 4.0])
    assert estimate.mean == 2.5
    assert estimate.standard_error == pytest.approx(math.sqrt(5 / 3 / 4))
    assert estimate.z == pytest.approx(2.5 / math.sqrt(5 / 12))


def test_one_value_has_no_error_and_none_no_mean() -> None:
    assert Estimate.of([3.0]).mean == 3.0
    assert math.isnan(Estimate.of([3.0]).standard_error)
    assert math.isnan(Estimate.of([3.0]).z)
    assert math.isnan(Estimate.of([]).mean)
    assert math.isnan(Estimate(0.0, 0.0).z)


def test_scores_are_compared_prompt_by_prompt() -> None:
    before = evaluation("before", [0.0, 10.0, 20.0], [1.0, 2.0, 3.0])
    after = evaluation("after", [1.0, 11.0, 21.1], [1.0, 2.0, 3.0])
    gold, proxy, kl, length = evaluation_changes(before, after)
    assert proxy.paired
    assert proxy.difference.mean == pytest.approx(3.1 / 3)
    assert proxy.difference.standard_error < 0.05 < proxy.before.standard_error
    assert math.isnan(gold.difference.z), "no change at all has no standard error to be measured in"
    assert not kl.paired
    assert kl.difference.standard_error == pytest.approx(math.hypot(0.3, 0.3))
    assert (kl.unit, length.unit) == ("nats", "tokens")


def test_other_prompts_are_not_paired() -> None:
    (proxy, *_) = evaluation_changes(evaluation("before", [0.0, 1.0]), evaluation("after", [1.0, 2.0, 3.0]))
    assert (proxy.name, proxy.paired) == ("proxy score", False)
    assert proxy.difference.mean == 1.5


def test_json_round_trip_keeps_everything_and_nan() -> None:
    result = evaluation("step 3", [0.5, 1.5], [math.nan, 1.0], step=3)
    text = json.dumps(finite(result.to_json()), allow_nan=False)
    back = EvaluationResult.from_json(json.loads(text))
    assert back.proxy == result.proxy
    assert back.samples[0].response == "r"
    assert back.gold is not None and math.isnan(back.gold.mean)
    assert back.samples[0].gold is not None and math.isnan(back.samples[0].gold)
    assert back.gold_values is not None and back.gold_values[1] == 1.0
    plain = evaluation("before", [0.5, 1.5])
    assert EvaluationResult.from_json(json.loads(json.dumps(plain.to_json()))) == plain


def test_an_evaluation_without_a_kl_and_one_of_an_older_run_are_read() -> None:
    plain = replace(evaluation("before", [0.0, 1.0]), kl=None, name="math", decides=False)
    written = json.loads(json.dumps(finite(plain.to_json())))
    assert EvaluationResult.from_json(written) == plain
    older = {key: value for key, value in written.items() if key not in ("name", "decides")}
    assert (EvaluationResult.from_json(older).name, EvaluationResult.from_json(older).decides) == ("", True)
    assert [change.name for change in evaluation_changes(plain, plain)] == ["proxy score", "response length"]


@pytest.mark.parametrize(
    "other",
    [
        replace(evaluation("after", [1.0, 11.0, 21.1]), name="code"),
        replace(evaluation("after", [1.0, 11.0, 21.1]), samples=[SampleRow("q", "r", 1.0, None, 1.5, True)]),
    ],
    ids=["of another set", "of a set that has changed"],
)
def test_other_prompts_of_the_same_number_are_not_paired(other: EvaluationResult) -> None:
    (proxy, *_) = evaluation_changes(evaluation("before", [0.0, 10.0, 20.0]), other)
    assert not proxy.paired and proxy.difference.standard_error > 5.0


def test_a_chat_is_the_same_in_the_template_of_another_model() -> None:
    asked = [{"role": "user", "content": "p"}]
    rows = [SampleRow(text, "r", 1.0, None, 1.5, True, messages=asked) for text in ("<user>p", "[INST]p")]
    before, after = (replace(evaluation("one", [0.0, 1.0]), samples=[row]) for row in rows)
    assert evaluation_changes(before, after)[0].paired
