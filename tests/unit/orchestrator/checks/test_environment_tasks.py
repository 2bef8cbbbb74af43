"""An environment at the door: each kind of bad one is told before anything starts."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from orchestrator.checks.preparation import prepare_evaluate, prepare_train
from orchestrator.config.loading import validate_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.errors import ConfigError
from tests.unit.orchestrator.checks.door import World

SOUND = """
class Env:
    def reset(self, columns):
        return [{"role": "user", "content": columns["prompt"]}]

    def step(self, response):
        return [{"role": "user", "content": "b"}], 1.0
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A sound configuration with an environment that pays."""
    world = World(tmp_path)
    world.set("reward", {"type": "environment"})
    world.set("critic.model", {"path": str(world.policy)})
    world.set("environment", {"path": str(tmp_path / "env.py"), "max_tokens": 32, "timeout_s": 20.0})
    write(world, SOUND)
    return world


def write(world: World, text: str) -> None:
    (world.root / "env.py").write_text(textwrap.dedent(text))


def refused(world: World, *parts: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare_train(world.config, resume=None)
    assert [part for part in parts if part not in str(caught.value)] == [], caught.value


def test_a_sound_environment_passes_and_the_tasks_come_out(world: World) -> None:
    training, heldout, _ = prepare_train(world.config, resume=None)
    assert training.columns == {"prompt": ["a b", "c"]} and training.token_ids == [[], []]
    assert list(heldout) == [""] and training.summary == "prompts.train: 2 tasks for the environment"
    assert len(prepare_evaluate(world.config)[""]) == 2
    assert training.example.startswith("prompts.train, row 0, as the model reads it:")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("class Env(:", ["environment.path=", "is not Python, line 1"]),
        ("class Game:\n    pass", ["environment.name=Env is not defined", "reset(columns) -> messages"]),
        ("class Envi:\n    pass", ["environment.name=Env is not defined", "did you mean `Envi`?"]),
        ("def Env():\n    pass", ["environment.name=Env is a function", "it must be a class"]),
        ("class Env:\n    pass", ["environment.path=", "reset of the sample", "no attribute 'reset'"]),
        ("class Env:\n    def __init__(self, n): ...", ["reset", "missing 1 required positional argument: 'n'"]),
        ("import nothing_like_it\n\nclass Env:\n    pass", ["cannot be loaded", "nothing_like_it"]),
        (SOUND.replace("def step", "def stop"), ["turn 1, after the response ''", "no attribute 'step'"]),
        (SOUND.replace('return [{"role": "user", "content": "b"}], 1.0', "return 1.0"), ["step returned 1.0"]),
        (SOUND.replace('columns["prompt"]', 'columns["secret"]'), ["KeyError: 'secret'"]),
        (SOUND.replace('columns["prompt"]', '"a " * 9'), ["9 tokens, more than prompts.max_tokens=8"]),
        ("import time\n" + SOUND.replace("return [{", "time.sleep(60)\n        return [{"), ["no answer within"]),
    ],
)
def test_a_bad_environment_is_told(world: World, text: str, parts: list[str]) -> None:
    if "sleep" in text:
        world.set("environment.timeout_s", 0.3)
    write(world, text)
    refused(world, *parts)


def test_a_missing_file(world: World) -> None:
    world.set("environment.path", "nowhere.py")
    refused(world, "environment.path=nowhere.py does not exist")


def test_the_context_holds_the_longest_conversation(world: World) -> None:
    world.set("environment.max_tokens", 65)
    refused(world, "environment.max_tokens=65 is 65 tokens, more than the 64")


def test_rewards_are_not_learned_from_conversations(world: World) -> None:
    with pytest.raises(ConfigError, match=r"reward_training\.pairs\.type=sampled .* environment=null"):
        validate_root(RewardTrainingRun, world.data)
