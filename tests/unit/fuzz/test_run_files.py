"""Files that runs and users leave for other commands: checkpoints to resume, measured runs, efficiencies, functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.checks.preparation import prepare_train
from orchestrator.config.loading import dump_config, load_config
from orchestrator.data.prompts import PromptSource
from orchestrator.planning.calibration import CORRECTED_PHASES
from orchestrator.planning.efficiency import SHIPPED
from orchestrator.ppo.kl import make_controller
from orchestrator.ppo.step import TrainState
from orchestrator.run.checkpoint import Checkpoints
from tests.unit.fuzz.commands import examples, refusal
from tests.unit.fuzz.damage import damaged
from tests.unit.fuzz.odd import json_values
from tests.unit.fuzz.test_model_folders import all_paths
from tests.unit.fuzz.world import ROOT, World

JSON_FILES = ["checkpoints/step-000002/manifest.json", "run.json", "metrics.jsonl", "actor/tetrarch.json"]


@pytest.fixture(scope="module")
def run_dir(world: World) -> Path:
    """A run that has done two of its steps."""
    config = load_config(world.file)
    folder = Path(config.run_dir)
    prompts = PromptSource(prepare_train(config, None)[0], config.seed)
    driver = TrainState(prompts, make_controller(config.ppo.kl.controller)).state_dict()
    state = {"config": dump_config(config), "reference": "1-x", **driver, "step": 2}
    Checkpoints(folder / "checkpoints", 2).save(2, state, lambda partial: None)
    (folder / "actor").mkdir()
    measured = {"step": 2, "lr/actor": 1e-3, "response/length_mean": 5.0, "prompt/length_mean": 3.0}
    phases = {f"time/{phase}_s": 1.0 for phase in CORRECTED_PHASES}
    for name, text in {
        "config.yaml": dump_config(config),
        "run.json": json.dumps({"name": "tiny", "steps": 6, "status": "stopped"}),
        "metrics.jsonl": json.dumps(measured | phases) + "\n",
        "actor/tetrarch.json": json.dumps({"step": 2}),
    }.items():
        (folder / name).write_text(text)
    return folder


def read_run(world: World, run_dir: Path) -> None:
    """Every command that reads a run: what it refuses names the run."""
    for arguments in (["--resume"], ["--resume-from", "2"], []):
        refused = refusal("train", *arguments, "--", world.file)
        assert refused is None or str(run_dir) in refused or "steps=" in refused, refused
    refused = refusal("plan", "--calibrate", run_dir, "--", world.file)
    assert refused is None or str(run_dir) in refused, refused


def test_the_run_is_sound(world: World, run_dir: Path) -> None:
    assert refusal("train", "--resume", "--", world.file) is None
    assert refusal("plan", "--calibrate", run_dir, "--", world.file) is None


@examples(4)
@given(st.data(), st.sampled_from(JSON_FILES), json_values)
def test_an_odd_value_in_a_file_of_a_run(
    world: World, run_dir: Path, data: st.DataObject, name: str, value: Any
) -> None:
    content = json.loads((run_dir / name).read_text())
    *path, key = data.draw(st.sampled_from(all_paths(content)))
    section = content
    for part in path:
        section = section[part]
    section[key] = value
    with world.changed(run_dir / name, json.dumps(content).encode() + b"\n"):
        read_run(world, run_dir)


@examples(4)
@given(st.data(), st.sampled_from([*JSON_FILES, "config.yaml"]))
def test_a_damaged_file_of_a_run(world: World, run_dir: Path, data: st.DataObject, name: str) -> None:
    with world.changed(
        run_dir / name,
        data.draw(damaged((run_dir / name).read_bytes()) | json_values.map(lambda v: json.dumps(v).encode() + b"\n")),
    ):
        read_run(world, run_dir)


@examples(6)
@given(damaged(SHIPPED.read_bytes()))
def test_a_damaged_efficiency(world: World, data: bytes) -> None:
    file = world.write_bytes(data, f"efficiency-{abs(hash(data))}.yaml")
    refused = refusal("plan", "--efficiency", file, "--", world.file)
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
    refused = refusal("train", world.file, f"reward={{type: function, path: {file}}}", f"run_dir={world.root}/other")
    assert refused is None or str(file) in refused


@examples(15)
@given(st.data())
def test_a_damaged_script_of_openrlhf(world: World, data: st.DataObject) -> None:
    sound = b"set -x\nray job submit -- python3 -m openrlhf.cli.train_ppo_ray \\\n  --pretrain a/b --save_path x"
    refusal("import-openrlhf", world.write_bytes(data.draw(damaged(sound)), "script.sh"))
