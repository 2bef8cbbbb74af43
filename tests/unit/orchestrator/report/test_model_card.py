"""The model card and its curves: what was known at the model's step, and text of others stays text."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import yaml

from orchestrator.report.charts import Card, training_cards
from orchestrator.report.curves_svg import curves_svg
from orchestrator.report.model_card import CardFacts, write_model_card
from orchestrator.report.run_files import RunRecord, RunState
from tests.unit.orchestrator.report.test_page import EVIL, metrics, record
from tests.unit.outside import outside

FACTS = CardFacts("actor", 5, "seed: 1\n", "owner/model", on_hub=True)


def card(folder: Path, run: RunRecord, facts: CardFacts = FACTS) -> str:
    write_model_card(folder, facts, run)
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_card_says_what_was_known_at_the_step_of_the_model(tmp_path: Path) -> None:
    text = card(tmp_path, record(10, state=RunState("smoke", 10, title="PPO", data=["3 prompts"])))
    head = yaml.safe_load(text.split("---")[1])
    assert head == {
        **{"library_name": "transformers", "pipeline_tag": "text-generation"},
        **{"tags": ["tetrarch", "ppo"], "base_model": "owner/model"},
    }
    assert "# smoke: actor, step 5" in text and "step 5 of 10 of a run of Tetrarch (PPO)" in text
    assert "| `score/mean` | 0.5 | " in text and "| `objective/kl` | 3.5 nats | " in text and "time/" not in text
    assert [
        line.split(" | ")[1] for line in text.splitlines() if line.startswith(("| before", "| step", "| after"))
    ] == [
        "0",
        "5",
    ]
    assert "![curves](curves.svg)" in text and "- 3 prompts" in text and "seed: 1" in text
    assert "AutoModelForCausalLM" in text


def test_the_card_has_numbers_of_ones_own_and_those_of_each_member(tmp_path: Path) -> None:
    own = {"score/short/mean": 0.25, "score/short/std": 0.5, "reward/format_ok/mean": 0.75}
    text = card(tmp_path, record(metrics=[{**line, **own} for line in metrics(10)]))
    assert "| `score/short/mean` | 0.25 | Score that the ensemble's member short gives; mean" in text
    assert "| `reward/format_ok/mean` | 0.75 | " in text
    assert "score/short/std" not in text, "what has no chart has no line"


def test_a_value_model_from_a_folder_names_no_model_of_the_hub(tmp_path: Path) -> None:
    text = card(tmp_path, record(), replace(FACTS, role="critic", base="/models/mine", on_hub=False))
    assert "base_model" not in text and "/models/mine" in text and "AutoModelForSequenceClassification" in text


def test_foreign_text_is_text_in_the_card_and_in_the_curves(tmp_path: Path) -> None:
    state = RunState(EVIL, 10, title=EVIL, data=[EVIL, "[x](http://a) `b`"], versions={EVIL: EVIL})
    run = record(state=state, config_yaml="")
    config = f"a: '{EVIL}'\nb: '````'\n"
    text = card(tmp_path, run, replace(FACTS, config_yaml=config, base=EVIL, on_hub=False))
    before, fenced = text.split("<details>")
    assert not re.search(r"(?<!\\)<", before) and "\u202e" not in text and "\x1b" not in text
    assert r"\[x\](http://a) \`b\`" in text
    assert re.findall("^`{5}.*$", fenced, re.MULTILINE) == ["`````yaml", "`````"], "longer than any inside"


def test_a_run_without_a_step_has_a_card_without_curves(tmp_path: Path) -> None:
    empty = RunRecord(RunState("smoke", 0), [], [], [], "")
    text = card(tmp_path, empty, replace(FACTS, step=0))
    assert (
        [path.name for path in tmp_path.iterdir()] == ["README.md"] and "Curves" not in text and "Metrics" not in text
    )


def test_curves_are_drawn_and_load_nothing() -> None:
    text = curves_svg(training_cards(record()))
    drawing = ElementTree.fromstring(text)
    lines = drawing.findall(".//{*}polyline")
    titles = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert len(lines) > 6 and {"Score", "KL to the reference"} <= set(titles)
    assert outside(text) == []
    inside = [tuple(map(float, point.split(","))) for line in lines for point in line.attrib["points"].split()]
    assert all(0 <= x <= 400 and 0 <= y <= 190 for x, y in inside)


def test_a_value_that_is_no_number_is_a_gap() -> None:
    """Of value/loss the second is missing."""
    (loss,) = (one for one in training_cards(record(5)) if one.title == "Value loss")
    drawing = ElementTree.fromstring(curves_svg([loss]))
    assert len(drawing.findall(".//{*}circle")) == 1, "the first value stands alone"
    (line,) = drawing.findall(".//{*}polyline")
    assert len(line.attrib["points"].split()) == 3


def test_one_step_equal_values_and_no_values_are_drawn_too() -> None:
    assert ElementTree.fromstring(curves_svg(training_cards(record(1)))).findall(".//{*}circle")
    flat = [{**line, "score/mean": 1.0, "reward/mean": 1.0} for line in metrics(4)]
    assert "NaN" not in curves_svg(training_cards(record(metrics=flat)))
    nothing = [{"step": 1, "score/mean": math.nan}]
    assert curves_svg(training_cards(record(metrics=nothing))) == "" == curves_svg([Card("t", "", None, "", "")])


def test_the_evaluations_of_each_set_are_in_the_card_up_to_its_step(tmp_path: Path) -> None:
    run = record(10)
    others = [replace(one, name="math", decides=False) for one in run.evaluations]
    text = card(tmp_path, replace(run, other_sets={"math": others}))
    rows = [line.split(" | ")[:3] for line in text.splitlines() if line.startswith(("| heldout", "| math"))]
    assert [[cell.strip("| ") for cell in row] for row in rows] == [
        [name, label, step] for name in ("heldout", "math") for label, step in (("before", "0"), ("step 5", "5"))
    ]
