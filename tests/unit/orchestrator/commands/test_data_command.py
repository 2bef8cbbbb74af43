"""`tetrarch data`: statistics and rows with what is trained on in brackets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from configs.tiny.inputs import write
from orchestrator.commands.app import app


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write(folder)
    return folder


def test_rows_are_shown_with_what_is_trained_on(inputs: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": " a"}] * 7 + [{"prompt": "q", "completion": ""}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, data = {"path": str(inputs / "policy")}, {"path": str(tmp_path / "rows.jsonl"), "bad_rows": "skip"}
    pairs = {"type": "dataset", "dataset": {"path": str(inputs / "pairs.jsonl"), "limit": 2, "chat": True}}
    written = {
        "sft": {"output": "o", "model": model, "data": data},
        "reward_training": {"output": "r", "model": model, "pairs": pairs},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    done = CliRunner().invoke(app, ["data", str(tmp_path / "run.yaml")])
    assert done.exit_code == 0, done.output
    assert "sft.data: 8 rows, 7 used, 1 left out" in done.output and "1 left out: bad row: nothing in" in done.output
    assert done.output.count("'q'⟦' a<eos>'⟧") == 5
    assert "0 (value 1): '<bos><user>tell me about the red garden<assistant>'⟦'gm mjfmx<eos>'⟧" in done.output
    assert "1 (value 0): " in done.output


def test_prompts_are_shown_once_and_the_held_out_ones_too(inputs: Path, tmp_path: Path) -> None:
    for part, count in (("train", 7), ("heldout", 2)):
        lines = [json.dumps({"prompt": f"{part} {number}"}) + "\n" for number in range(count)]
        (tmp_path / f"{part}.jsonl").write_text("".join(lines))
    written: dict[str, Any] = {  # what `tetrarch train`, `evaluate` and `serve` read
        "run_dir": str(tmp_path / "run"),
        "steps": 1,
        "prompts": {part: {"path": str(tmp_path / f"{part}.jsonl")} for part in ("train", "heldout")},
        "actor": {"model": {"path": str(inputs / "policy")}},
        "reward": {"type": "model", "model": {"path": str(inputs / "reward")}},
        "rollout": {"prompts_per_step": 4, "max_response_tokens": 4},
    }
    written["prompts"]["max_tokens"] = 32
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(written))
    done = CliRunner().invoke(app, ["data", str(tmp_path / "run.yaml")])
    assert done.exit_code == 0, done.output
    assert done.output.count("prompts.train: 7 prompts") == done.output.count("prompts.heldout: 2 prompts") == 1
    assert done.output.count("'train ") == 5 and done.output.count("'heldout ") == 2


def test_responses_for_a_judge_are_shown(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{number}", "responses": ["a", "b"]} for number in range(7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"type": "endpoint", "url": "http://h/v1/completions", "model": "m"}
    labelling = {"output": "o", "data": {"path": str(tmp_path / "rows.jsonl")}, "judge": judge}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"labelling": labelling}))
    done = CliRunner().invoke(app, ["data", str(tmp_path / "run.yaml")])
    assert done.exit_code == 0, done.output
    assert "labelling.data: 7 rows, 7 used" in done.output and "0: 'q0' → 'a' | 'b'" in done.output
    assert "'q4'" in done.output and "'q5'" not in done.output
