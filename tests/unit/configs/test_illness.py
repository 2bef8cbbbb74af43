"""The guide "the reward does not rise": its configurations, its commands and its pictures belong together."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from configs.illness import illnesses
from configs.illness.illnesses import CONFIG, GOLD_SCORE, ILLNESSES, Illness, IllnessRun
from configs.illness.pictures import _powers, _ticks, picture
from configs.illness.rewards import counted, easy, impossible, kindness
from orchestrator.config.loading import load_config
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.metrics import METRICS
from orchestrator.run.alert_rules import ALERT_RULES, GOLD
from tests.readmes import READMES, ROOT, commands

GUIDE = READMES["configs/illness/README.md"]
NAMES = sorted(ILLNESSES)


def part(name: str) -> str:
    """The section of the guide that shows the picture of an illness, with its heading."""
    (found,) = (text for text in re.split(r"^## ", GUIDE, flags=re.MULTILINE) if f"({name}.svg)" in text)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_an_illness_is_the_healthy_run_with_keys_changed(name: str) -> None:
    healthy, ill = load_config(ROOT / CONFIG), load_config(ROOT / CONFIG, IllnessRun(name).arguments[2:])
    changed = ill.model_dump(by_alias=True)
    for override in ILLNESSES[name].overrides:
        key, _, value = override.partition("=")
        section = changed
        for step in key.split(".")[:-1]:
            section = section[step]
        assert parse_yaml(value) is not None and key.split(".")[-1] in section, key
    assert ill.run_dir == f"runs/illness/{name}" and healthy.run_dir == "runs/illness/healthy"
    assert ill.model_copy(update={"run_dir": healthy.run_dir}) != healthy


@pytest.mark.parametrize("name", NAMES)
def test_the_guide_shows_how_to_run_it_what_tells_and_where_the_rule_leads(name: str) -> None:
    illness, text = ILLNESSES[name], part(name)
    command = [".venv/bin/tetrarch", *IllnessRun(name).arguments]
    assert command in commands() and shlex.join(command[2:4]) in text
    telling = set(illness.shown) - {"score/mean", GOLD_SCORE}  # of which all runs are
    assert [metric for metric in telling if f"`{metric}`" not in text] == []
    heading = re.sub(r"[^\w -]", "", text.splitlines()[0].lower()).replace(" ", "-")
    for rule in illness.alerts[:1]:
        assert heading == (GOLD if rule == "gold" else ALERT_RULES[rule]).section
    assert [rule for rule in illness.alerts if f"`{rule}`" not in text] == []


def test_what_an_illness_names_is_there() -> None:
    for illness in ILLNESSES.values():
        assert set(illness.alerts) <= {*ALERT_RULES, "gold"}
        assert set(illness.shown) <= {*METRICS, GOLD_SCORE}


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_a_real_run_shows_the_limit_and_where_the_rule_fired(name: str) -> None:
    file = ROOT / f"configs/illness/{name}.svg"
    text = file.read_text(encoding="utf-8")
    assert len(text) < 30_000 and "prefers-color-scheme: dark" in text
    root = ElementTree.fromstring(text)
    assert not [node for node in root.iter() if any("href" in key for key in node.attrib)]
    for metric in ILLNESSES[name].shown:
        assert metric in text
    for rule in ILLNESSES[name].alerts[:1]:
        assert re.search(rf"{rule} fires in step \d+", text)


def made_up(folder: Path, values: list[float], metric: str, rule: str = "", at: int = 0) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": step, metric: value}) for step, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if rule:
        (folder / "alerts.jsonl").write_text(json.dumps({"step": at, "rule": rule, "seen": ""}) + "\n")


def test_a_limit_that_depends_on_the_first_steps_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(illnesses, "RUNS", tmp_path)
    monkeypatch.setitem(ILLNESSES, "narrow", Illness((), ("saturated",), ("score/std", "score/std")))
    made_up(tmp_path / "healthy", [0.5] * 10, "score/std")
    made_up(tmp_path / "narrow", [0.4] * 5 + [0.01] * 5, "score/std", "saturated", 8)
    drawn = picture("narrow", IllnessRun("healthy"), IllnessRun("narrow"))
    ElementTree.fromstring(drawn)
    assert "alert saturated: below 0.04" in drawn and "saturated fires in step 8" in drawn
    (points, _) = re.findall(r'polyline class="ill"[^>]*points="([^"]*)"', drawn)
    heights = [float(point.split(",")[1]) for point in points.split()]
    assert len(heights) == 10 and heights[0] < heights[-1], "downwards"


def test_values_of_many_magnitudes_have_a_logarithmic_axis() -> None:
    assert _powers(3e-8, 0.1) == pytest.approx([1e-9, 1e-7, 1e-5, 1e-3, 1e-1])
    assert _powers(0.02, 40.0) == pytest.approx([0.01, 0.1, 1.0, 10.0, 100.0])
    assert (
        _ticks(0.21, 0.79) == pytest.approx([0.2, 0.4, 0.6, 0.8]) and _ticks(1.0, 1.0)[0] < 1.0 < _ticks(1.0, 1.0)[-1]
    )


def test_the_rewards() -> None:
    said = ["kind warm stone", "kind kind kind kind", "kind warm bright gentle calm sweet", "", "stone"]
    asked = [""] * len(said)
    assert kindness(asked, said) == [0.5, 0.25, 1.0, 0.0, 0.0]
    assert counted(asked, said) == [0.5, 1.0, 1.5, 0.0, 0.0]
    assert impossible(asked, said) == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert easy(asked, said) == [1.0, 1.0, 1.0, 0.0, 0.0]
