"""A training goes on from a checkpoint with its own data alone; anything else is refused before a file changes."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from orchestrator.checks.preparation import prepare_reward, prepare_train
from orchestrator.commands.app import app
from orchestrator.config.loading import dump_config, validate_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.data.comparisons import digest, keep
from orchestrator.data.preference_pairs import Pairs
from orchestrator.data.prompts import PromptSource
from orchestrator.errors import ConfigError
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.model_contents import model_contents
from roles.batch import Preferences
from roles.text.template_date import DAY, kept_day
from tests.unit.orchestrator.checks.door import PAIRS, World, model_folder


def going_on(world: World, *, preferences: Preferences, step: int = 2) -> Path:
    """A run of reward training that `world.data` went on to `step`, whose comparisons were `preferences`."""
    config = validate_root(RewardTrainingRun, world.data)
    state = {"config": dump_config(config), "comparisons": digest(preferences)}
    Checkpoints(Path(config.run_dir) / "checkpoints", keep=2).save(step, state, lambda folder: None)
    return Path(config.run_dir)


def goes_on(world: World) -> None:
    prepare_reward(validate_root(RewardTrainingRun, world.data), "newest")


def test_reward_training_goes_on_with_its_own_pairs(world: World) -> None:
    pairs = world.root / "pairs.jsonl"
    pairs.write_text(PAIRS)
    source = {"type": "dataset", "dataset": {"path": str(pairs)}}
    world.data["reward_training"] |= {"pairs": source, "groups_per_step": 2}
    read = prepare_reward(validate_root(RewardTrainingRun, world.data), None)
    assert isinstance(read, Pairs)
    going_on(world, preferences=read.preferences)
    goes_on(world)
    pairs.write_text(PAIRS.replace('"chosen": "b"', '"chosen": "d"'))
    with pytest.raises(ConfigError, match="step-000002 was trained on other comparisons than there are now"):
        goes_on(world)
    pairs.write_text(PAIRS)
    going_on(world, preferences=read.preferences, step=3)
    with pytest.raises(ConfigError, match=r"is at step 3 of now 2; raise reward_training\.epochs"):
        goes_on(world)


def test_reward_training_goes_on_with_the_comparisons_that_it_sampled(world: World) -> None:
    tokens, lengths = torch.ones(10, 3, dtype=torch.long), torch.full((10,), 3)
    mine = Preferences(tokens, lengths, torch.arange(10) // 2, torch.arange(10.0), torch.ones(10))
    run_dir = going_on(world, preferences=mine, step=1)
    goes_on(world)  # they will be sampled again
    keep(mine, run_dir / "comparisons.safetensors")
    goes_on(world)
    keep(dataclasses.replace(mine, ranks=-mine.ranks), run_dir / "comparisons.safetensors")
    with pytest.raises(ConfigError, match="step-000001 was trained on other comparisons"):
        goes_on(world)


def begun(world: World) -> None:
    """A PPO run of `world.data` with files and a checkpoint of step 1."""
    reference = model_folder(world.root / "reference")
    world.set("reference.model.path", str(reference))
    world.set("ppo.kl.controller", {"type": "fixed", "coefficient": 0.05})
    training, *_ = prepare_train(world.config, None)
    run_dir, settings = world.run_dir, dump_config(world.config)
    with Reporter(
        run_dir, name="run", config_yaml=settings, title="PPO", steps=2, html=False, tensorboard=False
    ) as report:
        report.step(1, {"score/mean": 0.5}, ())
    models = {"models": model_contents(world.config), "reference": "1-fingerprint"}
    state = {
        "config": settings,
        "prompts": PromptSource(training, world.config.seed).state_dict(),
        **models,
        **kept_day(),
    }
    Checkpoints(run_dir / "checkpoints", keep=2).save(1, state, lambda folder: None)


def test_a_template_that_writes_the_day_reads_the_same_prompts_on_another_day(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.prompts.write_text('{"prompt": [{"role": "user", "content": "hi"}]}\n')
    template = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    (world.policy / "chat_template.jinja").write_text(template)
    monkeypatch.setenv(DAY, "2026-01-31")
    begun(world)
    for another in ("2026-02-01", ""):  # of the process before it resumes, and none
        monkeypatch.setenv(DAY, another)
        assert prepare_train(world.config, "newest").training.texts == ["31 Jan 2026 hi"]


def flip(folder: Path) -> None:
    """Change one byte of the weights, in place, and put the time of the change back."""
    file = folder / "model.safetensors"
    facts, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


OTHERS: dict[str, tuple[Callable[[World], object], str]] = {
    "seed": (lambda world: world.set("seed", 7), "seed: 1 in the checkpoint, now 7"),
    "prompts": (
        lambda world: world.prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n'),
        "are not those of the checkpoint",
    ),
    "reference": (lambda world: flip(world.root / "reference"), "model.safetensors of reference.model.path="),
    "LoRA": (lambda world: world.set("actor.lora", {"rank": 4}), "actor.lora"),
    "controller": (
        lambda world: world.set("ppo.kl.controller", {"type": "adaptive", "target": 1.0}),
        "ppo.kl.controller.type: fixed in the checkpoint, now adaptive",
    ),
    "model": (lambda world: flip(world.policy), "model.safetensors of actor.model.path="),
    "reward model": (lambda world: flip(world.reward), "model.safetensors of reward.model.path="),
    "path of a model": (
        lambda world: world.set("actor.model.path", str(shutil.copytree(world.policy, world.root / "copy"))),
        "actor.model.path: ",
    ),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run with a checkpoint, from which it can go on."""
    world = World(tmp_path_factory.mktemp("ran"))
    begun(world)
    prepare_train(world.config, "newest")
    return world


@pytest.fixture
def world_that_ran(ran: World) -> Iterator[World]:
    """The same for every test: what one has changed is put back."""
    data = json.dumps(ran.data)
    files = {path: path.read_bytes() for path in (ran.prompts, *ran.root.glob("*/model.safetensors"))}
    yield ran
    ran.data = json.loads(data)
    for path, content in files.items():
        path.write_bytes(content)


@pytest.mark.parametrize("other", OTHERS)
def test_what_a_run_cannot_go_on_with_is_refused_before_a_file_of_it_changes(world_that_ran: World, other: str) -> None:
    world, (change, said) = world_that_ran, OTHERS[other]
    file = world.root / "run.yaml"
    change(world)
    file.write_text(json.dumps(world.data))
    before = {path: path.read_bytes() for path in sorted(world.run_dir.rglob("*")) if path.is_file()}
    assert {"metrics.jsonl", "config.yaml", "run.json"} <= {path.name for path in before}
    result = CliRunner().invoke(app, ["train", str(file), "--resume"])
    assert result.exit_code == 2 and said in result.output, result.output
    assert {path: path.read_bytes() for path in sorted(world.run_dir.rglob("*")) if path.is_file()} == before
