"""`tetrarch sft` is refused at the door with key, value and fix, and goes on with its own demonstrations alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.checks.policy_training import prepare_sft
from orchestrator.config.loading import dump_config, validate_root
from orchestrator.config.sft import SftRun
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import Resume
from tests.unit.orchestrator.checks.door import World

ROWS = "".join(f'{{"prompt": "{word} ", "completion": "b c"}}\n' for word in "adefgh")


@pytest.fixture
def data(world: World) -> Path:
    file = world.root / "demonstrations.jsonl"
    file.write_text(ROWS)
    world.data["sft"] = {
        "output": str(world.root / "tuned"),
        "model": {"path": str(world.policy)},
        "data": {"path": str(file)},
        "samples_per_step": 2,
        "heldout_fraction": 0.0,
        "max_tokens": 16,
    }
    return file


def prepared(world: World, resume: Resume = None) -> Any:
    return prepare_sft(validate_root(SftRun, world.data), resume)


def left_at(world: World, step: int, **state: Any) -> None:
    """A run that has done so many steps."""
    config = validate_root(SftRun, world.data)
    state["config"] = dump_config(config)
    Checkpoints(Path(config.run_dir) / "checkpoints", keep=2).save(step, state, lambda folder: None)


def test_a_sound_configuration_passes_and_leaves_nothing(world: World, data: Path) -> None:
    assert len(prepared(world).training) == 6
    assert {path.name for path in world.root.iterdir()} == {
        *("policy", "reward", "prompts.jsonl", "score.py", "demonstrations.jsonl")
    }


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sft.data.path": "nowhere.jsonl"}, ["sft.data.path=nowhere.jsonl does not exist"]),
        ({"sft.heldout": {"path": "nowhere.jsonl"}}, ["sft.heldout.path=nowhere.jsonl does not exist"]),
        ({"sft.model.path": "/nowhere"}, ["sft.model.path=/nowhere does not exist"]),
        ({"sft.max_tokens": 65}, ["sft.max_tokens=65", "64"]),
        ({"sft.max_tokens": 3}, ["6 of 6 samples are longer than sft.max_tokens=3", "sft.too_long"]),
        ({"sft.heldout_fraction": 0.01}, ["sft.data: too few samples (6) to hold out sft.heldout_fraction=0.01"]),
        ({"sft.zero.sleep": True}, ["sft.zero.sleep=true has nothing to offload from with device=cpu"]),
        (
            {"device": "cuda", "sft.zero": {"stage": 2, "offload_parameters": True}},
            ["sft.zero.offload_parameters=true needs sft.zero.stage=3, not 2"],
        ),
        ({"sft.lora": {"targets": ["q_pro"]}}, ["sft.lora.targets: q_pro is no linear layer of this Llama"]),
        ({"sft.chat_template": "/nowhere.jinja"}, ["sft.chat_template=/nowhere.jinja cannot be read"]),
    ],
)
def test_what_does_not_serve_is_named(world: World, data: Path, changes: dict[str, Any], parts: list[str]) -> None:
    for key, value in changes.items():
        world.set(key, value)
    with pytest.raises(ConfigError) as caught:
        prepared(world)
    assert [part for part in parts if part not in str(caught.value)] == []


def test_an_output_that_is_not_ours_is_left_alone(world: World, data: Path) -> None:
    (world.root / "tuned").mkdir()
    (world.root / "tuned/thesis.txt").touch()
    with pytest.raises(ConfigError, match=r"sft\.output=.*tuned is not empty"):
        prepared(world)


def test_a_run_goes_on_with_its_own_demonstrations(world: World, data: Path) -> None:
    learned = {"demonstrations": prepared(world).digest()}
    left_at(world, 2, **learned)
    assert len(prepared(world, "newest").training) == 6
    data.write_text(ROWS.replace("b c", "c b", 1))
    with pytest.raises(ConfigError, match=r"step-000002 was trained on other demonstrations .* give sft\.data"):
        prepared(world, "newest")


def test_a_run_does_not_go_on_beyond_its_last_step(world: World, data: Path) -> None:
    left_at(world, 4, demonstrations=prepared(world).digest())
    with pytest.raises(ConfigError, match=r"step-000004 is at step 4 of now 3; raise sft\.epochs"):
        prepared(world, "newest")


def test_a_checkpoint_that_does_not_say_what_it_learned_from_is_refused(world: World, data: Path) -> None:
    left_at(world, 2)
    with pytest.raises(ConfigError, match="step-000002 was trained on other demonstrations"):
        prepared(world, "newest")
