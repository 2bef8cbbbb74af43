"""`tetrarch dpo` is refused at the door with key, value and fix, and goes on with its own preferences alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.checks.policy_training import prepare_dpo
from orchestrator.config.dpo import DpoRun
from orchestrator.config.loading import dump_config, validate_root
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import Resume
from tests.unit.orchestrator.checks.door import World

PAIRS = [{"prompt": f"{word} ", "chosen": "b c", "rejected": "d"} for word in "adefgh"]
LABELS = [{"prompt": f"{word} ", "completion": "b c", "label": word < "f"} for word in "adefgh"]
KTO = {"dpo.loss": {"type": "kto"}}


class Door:
    """A sound configuration; tests break one thing each."""

    def __init__(self, world: World) -> None:
        self.world, self.file = world, world.root / "preferences.jsonl"
        self.rows(PAIRS)
        world.data["dpo"] = {
            "output": str(world.root / "preferring"),
            "model": {"path": str(world.policy)},
            "data": {"path": str(self.file)},
            "samples_per_step": 2,
            "heldout_fraction": 0.0,
            "max_tokens": 16,
        }

    def rows(self, rows: list[Any]) -> None:
        self.file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def set(self, changes: dict[str, Any]) -> None:
        for key, value in changes.items():
            self.world.set(key, value)

    @property
    def config(self) -> DpoRun:
        return validate_root(DpoRun, self.world.data)

    def enter(self, resume: Resume = None) -> Any:
        return prepare_dpo(self.config, resume)

    def refused(self, *parts: str, resume: Resume = None) -> None:
        with pytest.raises(ConfigError) as caught:
            self.enter(resume)
        assert [part for part in parts if part not in str(caught.value)] == [], str(caught.value)

    def left_at(self, step: int, **state: Any) -> None:
        """A run that has done so many steps."""
        state["config"] = dump_config(self.config)
        folder = Path(self.config.run_dir) / "checkpoints"
        Checkpoints(folder, keep=2).save(step, state, lambda folder: None)


@pytest.fixture
def door(world: World) -> Door:
    return Door(world)


def test_a_sound_configuration_passes_and_leaves_nothing(door: Door) -> None:
    assert len(door.enter().training) == 6
    door.rows(LABELS)
    door.set(KTO)
    assert len(door.enter().training) == 6
    assert {path.name for path in door.world.root.iterdir()} == {
        *("policy", "reward", "prompts.jsonl", "score.py", "preferences.jsonl")
    }


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"dpo.data.path": "nowhere.jsonl"}, ["dpo.data.path=nowhere.jsonl does not exist"]),
        ({"dpo.heldout": {"path": "nowhere.jsonl"}}, ["dpo.heldout.path=nowhere.jsonl does not exist"]),
        ({"dpo.model.path": "/nowhere"}, ["dpo.model.path=/nowhere does not exist"]),
        ({"dpo.max_tokens": 65}, ["dpo.max_tokens=65", "64"]),
        ({"dpo.max_tokens": 3}, ["6 of 6 samples are longer than dpo.max_tokens=3", "dpo.too_long"]),
        ({"dpo.heldout_fraction": 0.01}, ["dpo.data: too few samples (6) to hold out dpo.heldout_fraction=0.01"]),
        ({"dpo.chat_template": "/nowhere.jinja"}, ["dpo.chat_template=/nowhere.jinja cannot be read"]),
        ({"dpo.loss": {"type": "ipo", "label_smoothing": 0.1}}, ["dpo.loss.label_smoothing"]),
        ({"dpo.loss": {"type": "simpo", "desirable_weight": 2}}, ["dpo.loss.desirable_weight"]),
        ({"dpo.loss": {"type": "sigmoid", "label_smoothing": 0.5}}, ["dpo.loss.label_smoothing", "0.5"]),
        ({"dpo.loss": {"type": "ppo"}}, ["dpo.loss.type", "kto"]),
        ({"model_cache": "/dev/null"}, ["model_cache=/dev/null"]),
        (KTO, ["lacks completion, label; it has prompt, chosen, rejected"]),
    ],
)
def test_what_does_not_serve_is_named(door: Door, changes: dict[str, Any], parts: list[str]) -> None:
    door.set(changes)
    door.refused(*parts)


@pytest.mark.parametrize(
    ("rows", "changes", "parts"),
    [
        (LABELS, {}, ["lacks chosen, rejected; it has prompt, completion, label"]),
        ([{"question": "a", "good": "b", "bad": "c"}], {}, ["lacks chosen, rejected; it has question, good, bad"]),
        ([*PAIRS, {"prompt": "a ", "chosen": "", "rejected": "b"}], {}, ["line 7", "nothing in a response"]),
        ([*PAIRS, {"prompt": "a ", "chosen": "b", "rejected": " "}], {}, ["line 7", "nothing in a response"]),
        (
            [{"prompt": "a ", "chosen": "b", "rejected": "b"}],
            {},
            ["no row to learn from", "the responses are the same"],
        ),
        (
            [{"prompt": "a ", "chosen": "b", "rejected": "b  "}],
            {},
            ["no row to learn from", "1 left out: the responses are the same tokens"],
        ),
        ([*LABELS, {"prompt": "a ", "completion": "b", "label": "perhaps"}], KTO, ["line 7", "'perhaps' in `label`"]),
        ([*LABELS, {"prompt": "a ", "completion": "", "label": True}], KTO, ["line 7", "nothing in `completion`"]),
        (LABELS[:3], KTO, ["dpo.data has labels true only", "add rows with the other label"]),
    ],
)
def test_rows_that_do_not_serve_are_named(
    door: Door, rows: list[Any], changes: dict[str, Any], parts: list[str]
) -> None:
    door.rows(rows)
    door.set(changes)
    door.refused(*parts)


def test_equal_pairs_are_left_out_and_counted(door: Door) -> None:
    door.rows(
        [*PAIRS, {"prompt": "a ", "chosen": "b", "rejected": "b"}, {"prompt": "a ", "chosen": "b", "rejected": "b "}]
    )
    data = door.enter()
    assert len(data.training) == 6
    assert "1 left out: the responses are the same (first: " in data.summary
    assert "1 left out: the responses are the same tokens (first: " in data.summary


def test_the_cache_of_a_job_need_not_last(door: Door) -> None:
    door.set({"model_cache": str(door.world.root / "runtime_resources/working_dir_files/job/runs/models")})
    assert len(door.enter().training) == 6


def test_an_output_that_is_not_ours_is_left_alone(door: Door) -> None:
    (door.world.root / "preferring").mkdir()
    (door.world.root / "preferring/thesis.txt").touch()
    door.refused("dpo.output=", "preferring is not empty")


def test_a_run_goes_on_with_its_own_preferences_and_loss(door: Door) -> None:
    door.left_at(2, preferences=door.enter().training.digest())
    assert len(door.enter("newest").training) == 6
    door.set({"dpo.loss": {"type": "sigmoid", "beta": 0.5}})
    door.refused("dpo.loss.beta: 0.1 in the checkpoint, now 0.5; this cannot change", resume="newest")
    door.set({"dpo.loss": {"type": "sigmoid"}})
    door.rows([*PAIRS[:-1], {**PAIRS[-1], "chosen": "c b"}])
    door.refused("step-000002 was trained on other preferences", "give dpo.data", resume="newest")


def test_a_run_does_not_go_on_beyond_its_last_step(door: Door) -> None:
    door.left_at(4, preferences=door.enter().training.digest())
    door.refused("step-000004 is at step 4 of now 3; raise dpo.epochs", resume="newest")
