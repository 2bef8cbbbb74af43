"""The pictures of the READMEs are small, load nothing, and show what is so now."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from configs.illness import illnesses
from configs.illness.illnesses import IllnessRun
from tests.pictures import PLAN, STEP, draw_plan, draw_screen
from tests.readmes import READMES, ROOT

SHOWN = {
    ROOT / Path(name).parent / path
    for name, text in READMES.items()
    for path in re.findall(r"!\[[^]]*\]\((.+?)\)", text)
}
LARGEST = {".svg": 30_000, ".png": 150_000}


def test_there_are_pictures() -> None:
    assert len(SHOWN) > 10


@pytest.mark.parametrize("file", sorted(SHOWN), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_picture_is_small_and_loads_nothing(file: Path) -> None:
    assert file.stat().st_size < LARGEST[file.suffix]
    if file.suffix == ".svg":
        text = file.read_text(encoding="utf-8")
        drawn = ElementTree.fromstring(text)
        assert not [key for node in drawn.iter() for key in node.attrib if key.endswith(("href", "src"))]
        assert not re.search(r"@import|url\((?!#)", text)


def test_the_first_readme_has_one_picture_at_most() -> None:
    assert READMES["README.md"].count("![") <= 1


def test_the_plan_s_picture_is_what_the_command_draws(tmp_path: Path) -> None:
    """Its figures change with the planner: `make pictures` draws it again."""
    draw_plan(tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text() == PLAN.read_text()


def test_the_screen_shows_a_run_in_the_middle_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(illnesses, "RUNS", tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    numbers = {"score/mean": 0.5, "time/step_s": 2.0, "time/generate_s": 1.0, "time/update_s": 1.0}
    steps = [{"step": step, **numbers} for step in range(1, STEP + 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    alert = {"step": 3, "rule": "explained_variance", "seen": "value/explained_variance −3, below 0", "means": "It is."}
    (folder / "alerts.jsonl").write_text(json.dumps(alert) + "\n")
    draw_screen(tmp_path / "screen.svg", IllnessRun("mine"))
    drawn = (tmp_path / "screen.svg").read_text().replace("&#160;", " ")
    assert f"{STEP - 1}/{STEP + 4}" in drawn and "explained_variance in step 3" in drawn
    assert "0.5 of 1.0 s" in drawn and "+0.500" in drawn
