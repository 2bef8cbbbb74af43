"""Files that runs and users leave for other commands: checkpoints to resume, measured runs, efficiencies, functions."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checks.policy_training import prepare_sft
from orchestrator.checks.preparation import prepare_reward, prepare_train
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import dump_config, load_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.roots import ROOTS
from orchestrator.config.run import RunConfig
from orchestrator.config.sft import SftRun
from orchestrator.data.comparisons import digest
from orchestrator.data.preference_pairs import Pairs
from orchestrator.data.prompts import PromptSource
from orchestrator.planning.calibration import CORRECTED_PHASES
from orchestrator.planning.efficiency import SHIPPED
from orchestrator.ppo.kl import make_controller
from orchestrator.ppo.state import TrainState
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.page import page
from orchestrator.report.run_files import read_record
from orchestrator.run.checkpoint import Checkpoints
from tests.unit.fuzz.commands import examples
from tests.unit.fuzz.damage import damaged
from tests.unit.fuzz.odd import json_values
from tests.unit.fuzz.test_model_folders import all_paths
from tests.unit.fuzz.world import ROOT, World

COMMANDS = ["train", "reward", "sft"]
JSON_FILES = ["checkpoints/step-000002/manifest.json", "run.json", "metrics.jsonl"]
TRAINED = "actor/tetrarch.json"
PPO_FILES = [TRAINED, "samples.jsonl", "evaluation.jsonl"]
"""What `tetrarch train` alone leaves."""

SAMPLE = SampleRow("a", "b", proxy=0.5, gold=None, kl=0.25, finished=True)
EVALUATION = EvaluationResult(
    *(0, "before", 2, Estimate(0.5, 0.1), None, Estimate(0.0, 0.0), Estimate(5.0, 1.0), 0.5),
    samples=[SAMPLE],
    proxy_values=[0.4, 0.6],
)


@pytest.fixture(scope="module")
def run_dirs(world: World) -> dict[str, Path]:
    """Command → a run of it that has done two of its steps."""
    return {command: _stopped(world, command) for command in COMMANDS}


def _stopped(world: World, command: str) -> Path:
    config = load_root(ROOTS[command], world.file)
    folder = Path(config.run_dir)
    state = {"config": dump_config(config), "step": 2, **_driver_state(config)}
    Checkpoints(folder / "checkpoints", 2).save(2, state, lambda partial: None)
    (folder / "actor").mkdir()
    measured = {"step": 2, "lr/actor": 1e-3, "response/length_mean": 5.0, "prompt/length_mean": 3.0}
    phases = {f"time/{phase}_s": 1.0 for phase in CORRECTED_PHASES}
    for name, text in {
        "config.yaml": dump_config(config),
        "run.json": json.dumps({"name": "tiny", "steps": 6, "status": "stopped"}),
        "metrics.jsonl": json.dumps(measured | phases) + "\n",
        TRAINED: json.dumps({"step": 2}),
        "samples.jsonl": json.dumps({"step": 2, **asdict(SAMPLE)}) + "\n",
        "evaluation.jsonl": json.dumps(EVALUATION.to_json()) + "\n",
    }.items():
        (folder / name).write_text(text)
    return folder


def _driver_state(config: BaseConfig) -> dict[str, Any]:
    match config:
        case RunConfig():
            prompts = PromptSource(prepare_train(config, None)[0], config.seed)
            driver = TrainState(prompts, make_controller(config.ppo.kl.controller))
            return {"reference": "1-x", **driver.state_dict(), "step": 2}
        case SftRun():
            return {"demonstrations": prepare_sft(config, None).digest()}
        case RewardTrainingRun():
            pairs = prepare_reward(config, None)
            assert isinstance(pairs, Pairs)
            return {"comparisons": digest(pairs.preferences)}
    raise AssertionError(config)


def go_on(world: World, run_dirs: dict[str, Path], command: str) -> None:
    """The run is resumed, or refused with its folder."""
    folder = str(run_dirs[command])
    for arguments in (["--resume"], ["--resume-from", "2"], []):
        refused = world.refusal(command, *arguments, "--", world.file)
        assert refused is None or folder in refused or "steps=" in refused, refused
        if refused is None and arguments:
            page(read_record(run_dirs[command]))


def calibrate(world: World, run_dirs: dict[str, Path]) -> None:
    """A plan has its times from the run, or is refused with its folder."""
    refused = world.refusal("plan", "--calibrate", run_dirs["train"], "--", world.file)
    assert refused is None or str(run_dirs["train"]) in refused, refused


def read_run(world: World, run_dirs: dict[str, Path], command: str) -> None:
    """Every command that reads a run of `command`."""
    go_on(world, run_dirs, command)
    if command == "train":
        calibrate(world, run_dirs)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_run_is_sound(world: World, run_dirs: dict[str, Path], command: str) -> None:
    assert world.refusal(command, "--resume", "--", world.file) is None
    assert "is not empty" in str(world.refusal(command, world.file))


def test_the_measured_run_is_sound(world: World, run_dirs: dict[str, Path]) -> None:
    assert world.refusal("plan", "--calibrate", run_dirs["train"], "--", world.file) is None
    (run_dirs["train"] / "efficiency.yaml").unlink()


@st.composite
def files_of_runs(draw: st.DrawFn, *more: str) -> tuple[str, str]:
    """A command, and a file of its run; PPO's half of the time."""
    command = draw(st.sampled_from(["train", "train", "reward", "sft"]))
    return command, draw(st.sampled_from([*JSON_FILES, *more, *(PPO_FILES if command == "train" else [])]))


@examples(5)
@given(st.data(), files_of_runs(), json_values)
def test_an_odd_value_in_a_file_of_a_run(
    world: World, run_dirs: dict[str, Path], data: st.DataObject, one: tuple[str, str], value: Any
) -> None:
    command, name = one
    file = run_dirs[command] / name
    content = json.loads(file.read_text())
    *path, key = data.draw(st.sampled_from(all_paths(content)))
    section = content
    for part in path:
        section = section[part]
    section[key] = value
    with world.changed(file, json.dumps(content).encode() + b"\n"):
        read_run(world, run_dirs, command)


@examples(5)
@given(st.data(), files_of_runs("config.yaml"))
def test_a_damaged_file_of_a_run(
    world: World, run_dirs: dict[str, Path], data: st.DataObject, one: tuple[str, str]
) -> None:
    file = run_dirs[one[0]] / one[1]
    with world.changed(
        file, data.draw(damaged(file.read_bytes()) | json_values.map(lambda v: json.dumps(v).encode() + b"\n"))
    ):
        read_run(world, run_dirs, one[0])


@examples(6)
@given(damaged(SHIPPED.read_bytes()))
def test_a_damaged_efficiency(world: World, data: bytes) -> None:
    file = world.write_bytes(data, f"efficiency-{abs(hash(data))}.yaml")
    refused = world.refusal("plan", "--efficiency", file, "--", world.file)
    assert refused is None or str(file) in refused


@examples(10)
@given(
    st.data(),
    st.sampled_from(["( " * 300, "x" * 5000, "def f():\n" * 200, "-" * 100000, "lambda: " * 500, "f'{" * 200]),
)
def test_a_damaged_function(world: World, data: st.DataObject, piece: str) -> None:
    sound = (ROOT / "configs/tiny/reward.py").read_bytes()
    file = world.write_bytes(
        data.draw(damaged(sound) | st.just(piece.encode()) | st.just(sound + piece.encode())), "function.py"
    )
    refused = world.refusal(
        "train", world.file, f"reward={{type: function, path: {file}}}", f"run_dir={world.root}/other"
    )
    assert refused is None or str(file) in refused
