"""Files of a run that hold something else than a run writes are refused with their name."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.page import page
from orchestrator.report.run_files import finite, read_record

DEEP = b"[" * 100_000
DAMAGED = {
    "metrics.jsonl": [
        *(b"[]\n", b"1\n", b"null\n", b"{}\n", b"x\n", DEEP + b"\n", b"\xff\n"),
        *(
            b'{"step": "1"}\n',
            b'{"step": 1.5}\n',
            b'{"step": true}\n',
            b'{"step": 1, "x": "a"}\n',
            b'{"step": 1, "x": []}\n',
        ),
    ],
    "evaluation.jsonl": [b'{"step": 1}\n', b'{"step": 1, "gold": 1, "gold_values": 2}\n', b"[]\n"],
    "samples.jsonl": [b'{"step": 1}\n', b'{"step": 1, "proxy": "x", "gold": null, "prompt": "", "response": ""}\n'],
    "run.json": [
        b"",
        b"[]",
        b"1",
        b"null x",
        b"{}",
        DEEP,
        b"\xff",
        b'{"name": "x"}',
        b'{"name": "x", "steps": 1, "y": 2}',
    ],
    "config.yaml": [b"\xff"],
}


def a_run(folder: Path) -> Path:
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    (folder / "run.json").write_text(json.dumps({"name": "x", "steps": 6, "status": "stopped"}))
    return folder


def test_a_line_that_a_crash_has_cut_is_left_out(tmp_path: Path) -> None:
    record = read_record(a_run(tmp_path))
    assert [line["step"] for line in record.metrics] == [1, 2]
    assert (record.state.steps, record.state.status, record.evaluations, record.samples) == (6, "stopped", [], [])


SAMPLE = SampleRow("a", "b", proxy=0.5, gold=None, kl=math.nan, finished=True)
EVALUATION = EvaluationResult(
    *(0, "before", 2, Estimate(0.5, math.nan), None, Estimate(0.0, 0.0), Estimate(5.0, 1.0), 0.5),
    samples=[SAMPLE],
    proxy_values=[0.4, 0.6],
)
WRONG = [
    ("samples.jsonl", asdict(SAMPLE) | {"step": 2}, {"response": 0}, "response: Input should be a valid string"),
    ("evaluation.jsonl", EVALUATION.to_json(), {"label": None}, "label: Input should be a valid string"),
    ("evaluation.jsonl", EVALUATION.to_json(), {"prompts": "x"}, "prompts: Input should be a valid integer"),
    ("run.json", {"name": "x", "steps": 6}, {"name": 1}, "name: Input should be a valid string"),
    ("run.json", {"name": "x", "steps": 6}, {"targets": {"a": []}}, "targets.a: Input should be a valid number"),
]


@pytest.mark.parametrize(("name", "sound", "change", "why"), WRONG)
def test_a_value_of_another_type_is_named(
    tmp_path: Path, name: str, sound: dict[str, Any], change: dict[str, Any], why: str
) -> None:
    file = a_run(tmp_path) / name
    file.write_text(json.dumps(finite(sound)) + "\n")
    assert page(read_record(tmp_path))
    file.write_text(json.dumps(finite(sound | change)) + "\n")
    with pytest.raises(ValueError, match=re.escape(f"{file} is not as a run has written it (ValueError: {why}")):
        read_record(tmp_path)


@pytest.mark.parametrize(("name", "content"), [(name, content) for name, found in DAMAGED.items() for content in found])
def test_a_file_that_is_not_a_runs_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (a_run(tmp_path) / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{tmp_path}/{name} (holds|is not as|has no number).*; (restore|fix) or remove"
    ):
        read_record(tmp_path)


@pytest.mark.parametrize("name", sorted(DAMAGED))
@pytest.mark.parametrize(
    "make", [Path.mkdir, lambda file: file.symlink_to("/proc/self/mem")], ids=["folder", "unreadable"]
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    file = a_run(tmp_path) / name
    file.unlink(missing_ok=True)
    make(file)
    with pytest.raises(ValueError, match=rf"{file} cannot be read \(.*\); restore or remove it"):
        read_record(tmp_path)
