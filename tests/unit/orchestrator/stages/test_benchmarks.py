"""Benchmarks: the words for lm-eval, what is read of its results, and its failures. lm-eval itself is a script here."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.checks import benchmark_inputs as door
from orchestrator.config.evaluation import BenchmarksConfig, EvaluationRun
from orchestrator.config.loading import validate_root
from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.stages.benchmarks import BenchmarkResult, arguments, results_of, run_benchmarks

FOUND = {
    "arc_easy": {
        "alias": "arc_easy",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "exact_match,strict-match": 1.0,
        "exact_match_stderr,strict-match": "N/A",
    }
}
RESULTS = [
    BenchmarkResult("arc_easy", "acc", "none", 0.5, 0.1),
    BenchmarkResult("arc_easy", "exact_match", "strict-match", 1.0, None),
]
SCRIPT = """
import json, pathlib, sys
if "broken" in sys.argv:
    sys.exit("no such task: broken")
if "endless" in sys.argv:
    import os, time
    print(f"begun {os.getpid()}", flush=True)
    time.sleep(60)
folder = pathlib.Path(sys.argv[sys.argv.index("--output_path") + 1]) / "model"
folder.mkdir()
(folder / "results_2026.json").write_text(json.dumps({"results": FOUND, "said": sys.argv[1:]}))
print("done")
"""


def configured(folder: Path, **benchmarks: Any) -> EvaluationRun:
    data = {
        "run_dir": str(folder / "run"),
        "actor": {"model": {"path": "m"}},
        "reward": {"type": "remote", "urls": ["http://127.0.0.1:1"]},
        "prompts": {"train": {"path": "rows.jsonl"}, "max_tokens": 8},
        "rollout": {"prompts_per_step": 1, "max_response_tokens": 8},
        "evaluation": {"benchmarks": {"tasks": ["arc_easy"], **benchmarks}},
    }
    return validate_root(EvaluationRun, data)


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lm_eval.py").write_text(SCRIPT.replace("FOUND", json.dumps(FOUND)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_each_key_is_a_word_of_the_command(tmp_path: Path) -> None:
    config = configured(tmp_path, tasks=["a", "b"], task_folder="t", examples=7, few_shot=0, chat=True, batch_size=3)
    benchmarks = config.evaluation.benchmarks
    assert benchmarks is not None
    words = arguments(config, benchmarks, tmp_path)
    pairs = {word: words[place + 1] for place, word in enumerate(words[:-1])}
    assert json.loads(pairs["--model_args"]) == {
        "pretrained": str(tmp_path),
        "dtype": "float32",
        "trust_remote_code": False,
    }
    assert words[words.index("--tasks") + 1 :][:2] == ["a", "b"] and words[-1] == "--apply_chat_template"
    assert (pairs["--limit"], pairs["--num_fewshot"], pairs["--batch_size"]) == ("7", "0", "3")
    assert (pairs["--include_path"], pairs["--device"], pairs["--seed"]) == ("t", "cpu", "1")
    plain = arguments(config, BenchmarksConfig(tasks=["a"]), tmp_path)
    assert not {"--limit", "--num_fewshot", "--include_path", "--apply_chat_template"} & set(plain)


def test_metrics_have_their_errors_where_there_are_some() -> None:
    assert list(results_of(FOUND)) == RESULTS
    assert [one.line() for one in RESULTS] == [
        "  arc_easy acc: 0.500 ±0.100",
        "  arc_easy exact_match (strict-match): 1.000",
    ]


@pytest.mark.usefixtures("script")
def test_a_process_is_started_and_its_results_are_read(tmp_path: Path) -> None:
    assert run_benchmarks(configured(tmp_path), tmp_path) == RESULTS
    assert (tmp_path / "run/logs/benchmarks.log").read_text() == "done\n"
    with pytest.raises(TetrarchError, match=r"lm-eval ended with exit code 1; .*\nno such task: broken"):
        run_benchmarks(configured(tmp_path, tasks=["broken"]), tmp_path)


@pytest.mark.usefixtures("script")
def test_a_process_that_does_not_end_is_ended_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits, log = subprocess.Popen.wait, tmp_path / "run/logs/benchmarks.log"

    def wait(process: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout != 9.0:
            return waits(process, timeout)
        while "begun" not in log.read_text():  # then its time is over
            time.sleep(0.01)
        raise subprocess.TimeoutExpired(process.args, timeout)

    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(TetrarchError, match=r"not ended in evaluation\.benchmarks\.limit_s=9; .*\nbegun \d+") as caught:
        run_benchmarks(configured(tmp_path, tasks=["endless"], limit_s=9.0), tmp_path)
    assert not psutil.pid_exists(int(str(caught.value).split()[-1]))


def test_without_the_section_nothing_is_started(tmp_path: Path) -> None:
    config = configured(tmp_path)
    without = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"benchmarks": None})})
    assert run_benchmarks(without, tmp_path) == [] and not (tmp_path / "run").exists()
    door.check_benchmarks(None)


def test_what_is_not_there_is_told_at_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package lm-eval, which is not installed; install the extra"):
        door.check_benchmarks(BenchmarksConfig(tasks=["a"]))
    monkeypatch.setattr(door, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"evaluation\.benchmarks\.task_folder=no/such is not a folder"):
        door.check_benchmarks(BenchmarksConfig(tasks=["a"], task_folder="no/such"))
    door.check_benchmarks(BenchmarksConfig(tasks=["a"], task_folder=str(tmp_path)))
