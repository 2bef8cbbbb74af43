"""Each kind of bad input is refused with key, value and fix, before anything starts."""

from __future__ import annotations

import pytest

from orchestrator.checks.preparation import (
    prepare_evaluate,
    prepare_train,
)
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import dump_config, validate_root
from orchestrator.data.demonstrations import PtxSource
from orchestrator.data.prompts import PromptSource
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from tests.unit.orchestrator.checks.door import WORDS, World, check, model_folder, refused


@pytest.mark.parametrize("command", ["train", "evaluate", "reward"])
def test_a_sound_configuration_passes(world: World, command: str) -> None:
    check(command, world)
    assert not world.run_dir.exists() and not (world.root / "cache").exists()


def test_a_reward_that_is_no_model_passes(world: World) -> None:
    world.set("reward", {"type": "function", "path": str(world.function)})
    world.set("critic.model", {"path": str(world.policy)})
    check("train", world)


# Sizes


@pytest.mark.parametrize("key", ["actor", "reward", "critic", "reference"])
def test_prompt_and_response_over_a_models_context(world: World, key: str) -> None:
    short = model_folder(world.root / "short", reward=key == "reward", max_position_embeddings=15)
    world.set(f"{key}.model", {"path": str(short)})
    said = "prompts.max_tokens=8 + rollout.max_response_tokens=8 is 16 tokens, more than the 15"
    refused(world, said, f"{key}.model.path={short}")


def test_pairs_over_the_backbones_context(world: World) -> None:
    world.set("reward_training.max_tokens", 65)
    refused(world, "reward_training.max_tokens=65", "more than the 64", command="reward")


@pytest.mark.parametrize(("parallel", "fits"), [(1, True), (2, True), (4, True), (3, False), (8, False)])
def test_tensor_parallelism_must_divide_the_heads(world: World, parallel: int, fits: bool) -> None:
    world.set("placement", {"type": "local", "rollout": {"tensor_parallel_size": parallel}})
    if fits:
        check("train", world)
    else:
        refused(world, f"tensor_parallel_size={parallel}", "4 attention heads", "use 1, 2, 4")


def test_absurd_kv_caches(world: World) -> None:
    world.set("rollout.engine.kv_cache_gib", 1e6)
    refused(world, "rollout.engine.kv_cache_gib=1e+06", "this machine has", "lower it")
    world.set("rollout.engine.kv_cache_gib", 1e-6)
    refused(world, "rollout.engine.kv_cache_gib=1e-06", "one sample of 16 tokens", "use 0.01 or more")


@pytest.mark.parametrize("command", ["train", "evaluate", "reward", "serve", "serve --reward"])
def test_a_card_must_be_there_where_ray_is_started(world: World, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    world.set("device", "cuda")
    refused(world, "device=cuda, but torch finds no GPU on this machine", "use device=cpu", command=command)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    check(command, world)


# Data


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_missing_and_bad_prompts(world: World, part: str) -> None:
    file = world.root / "other.jsonl"
    world.set(f"prompts.{part}.path", str(file))
    where = f"prompts.{part}.path={file}"
    refused(world, where, "does not exist")
    for text, expected in [
        ("", "is empty"),
        ('{"topic": "a"}\n', "none of the columns prompt, messages, prompt_token_ids"),
        ('{"prompt": "a b c d e f g h a"}\n', "row 0 has 9 tokens, more than prompts.max_tokens=8"),
    ]:
        file.write_text(text)
        refused(world, where, expected)
    world.set("prompts.too_long", "truncate")
    check("train", world)


def test_evaluation_needs_heldout_prompts(world: World) -> None:
    world.set("prompts.heldout", None)
    check("train", world)
    refused(world, "prompts.heldout is null", "prompts.heldout.path", command="evaluate")


def test_a_share_of_the_training_prompts_can_be_the_heldout_ones(world: World) -> None:
    world.prompts.write_text("".join(f'{{"prompt": "{a} {b}"}}\n' for a in "abcdefgh" for b in "abcdefgh"))
    world.set("prompts.heldout", None)
    world.set("prompts.heldout_fraction", 0.25)
    world.set("evaluation.every", 1)
    training, held, _ = prepare_train(world.config, resume=None)
    (aside,) = held.values()
    assert len(training) + len(aside) == 64 and "trained on" not in aside.summary
    check("evaluate", world)
    world.set("prompts.heldout", {"path": str(world.prompts)})
    with pytest.raises(ConfigError, match=r"heldout_fraction=0\.25 takes held-out prompts from prompts\.train"):
        _ = world.config


def test_every_set_of_heldout_prompts_is_read_and_checked(world: World) -> None:
    other = world.root / "other.jsonl"
    other.write_text('{"prompt": "a b"}\n{"prompt": "d"}\n')
    world.set("prompts.heldout_sets", {"letters": {"path": str(other)}})
    data = prepare_train(world.config, resume=None)
    assert list(data.heldout) == ["", "letters"] and len(data.heldout["letters"]) == 2
    assert data.heldout["letters"].summary.startswith("prompts.heldout_sets.letters: 2 prompts")
    assert "1 of them is in prompts.train too" in data.heldout["letters"].summary
    assert list(prepare_evaluate(validate_root(EvaluationRun, world.data))) == ["", "letters"]
    other.write_text('{"question": "a"}\n{"prompt": 3}\n')
    for command in ("train", "evaluate"):
        refused(world, f"prompts.heldout_sets.letters.path={other}", command=command)
    world.set("prompts.heldout_sets", {"letters": {"path": str(world.root / "none.jsonl")}})
    refused(world, "prompts.heldout_sets.letters.path=", "does not exist")


def test_pairs_need_their_columns(world: World) -> None:
    pairs = world.root / "pairs.jsonl"
    world.set("reward_training.pairs", {"type": "dataset", "dataset": {"path": str(pairs)}})
    refused(world, "reward_training.pairs.dataset.path=", "does not exist", command="reward")
    pairs.write_text('{"question": "a", "chosen": "b"}\n')
    refused(world, "lacks rejected; it has question, chosen", command="reward")
    pairs.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    refused(world, "1 usable groups of 1 are too few", "give more prompts or pairs", command="reward")
    pairs.write_text("".join(f'{{"prompt": "{prompt}", "chosen": "b", "rejected": "c"}}\n' for prompt in "aeiou"))
    check("reward", world)


def test_what_models_and_prompts_are_is_told_at_once(world: World) -> None:
    short = model_folder(world.root / "short", max_position_embeddings=15)
    strange = model_folder(world.root / "strange", words=[*WORDS[:-1], "z"])
    long, other = world.root / "long.jsonl", world.root / "other.jsonl"
    long.write_text('{"prompt": "a b c d e f g h a"}\n')
    other.write_text('{"topic": "a"}\n')
    for key, value in (("actor.model", short), ("critic.model", strange), ("reward.model", world.policy)):
        world.set(key, {"path": str(value)})
    world.set("prompts.train.path", str(long))
    world.set("prompts.heldout.path", str(other))
    world.set("rollout.engine.kv_cache_gib", 1e6)
    lines = refused(
        world,
        f"actor.model.path={short}",
        f"critic.model.path={strange}",
        f"reward.model.path={world.policy}",
        f"prompts.train.path={long}",
        f"prompts.heldout.path={other}",
        "rollout.engine.kv_cache_gib=1e+06",
    ).splitlines()
    assert len(lines) == len(set(lines))


def test_a_used_folder_is_told_with_what_is_missing(world: World) -> None:
    world.run_dir.mkdir()
    (world.run_dir / "metrics.jsonl").write_text("")
    world.set("prompts.train.path", "nowhere.jsonl")
    refused(world, f"run_dir={world.run_dir}", "prompts.train.path=nowhere.jsonl")
    world.set("reward_training.model.path", "./no-model")
    refused(world, "reward_training.model.path=./no-model", "prompts.train.path=nowhere.jsonl", command="reward")


# Folders that are written to


def test_a_run_directory_in_use(world: World) -> None:
    world.run_dir.mkdir()
    (world.run_dir / "logs").mkdir()
    check("train", world)
    (world.run_dir / "metrics.jsonl").touch()
    refused(world, f"run_dir={world.run_dir} is not empty", "metrics.jsonl", "no checkpoint is in it", "remove it")
    check("evaluate", world)
    (world.run_dir / "metrics.jsonl").unlink()
    for name, status in (("config.yaml", ""), ("run.json", '{"status": "running"}')):
        (world.run_dir / name).write_text(status)
    refused(world, f"run_dir={world.run_dir} is not empty", "no checkpoint is in it")
    (world.run_dir / "run.json").write_text('{"status": "failed"}')
    check("train", world)  # it had not done a step
    Checkpoints(world.run_dir / "checkpoints", keep=2).save(2, {}, lambda folder: None)
    refused(world, f"run_dir={world.run_dir} is not empty", "say --resume to go on with that run")


@pytest.mark.parametrize("name", ["evaluate.json", "best-of-n.jsonl"])
def test_what_is_known_of_the_untrained_policy_does_not_make_the_run_directory_used(world: World, name: str) -> None:
    world.run_dir.mkdir(exist_ok=True)
    (world.run_dir / name).touch()
    check("train", world)


def test_a_reward_model_inside_the_run_directory_does_not_make_it_used(world: World) -> None:
    world.set("reward_training.output", str(world.run_dir / "reward" / "model"))
    (world.run_dir / "reward" / "model").mkdir(parents=True)
    check("train", world)
    (world.run_dir / "reward" / "model" / "model.safetensors").touch()
    refused(world, f"run_dir={world.run_dir} is not empty", "reward")
    (world.run_dir / "reward" / "model" / "reward_quality.json").touch()
    check("train", world)


def test_resuming_needs_a_whole_checkpoint(world: World) -> None:
    prompts = PromptSource(prepare_train(world.config, resume=None)[0], world.config.seed).state_dict()
    (world.run_dir / "checkpoints" / "step-000001.partial").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no checkpoint to resume from; start anew with another run_dir"):
        prepare_train(world.config, resume="newest")
    state = {"config": dump_config(world.config), "prompts": prompts}
    Checkpoints(world.run_dir / "checkpoints", keep=2).save(2, state, lambda folder: None)
    prepare_train(world.config, resume="newest")
    trained = world.run_dir / "actor" / "tetrarch.json"
    trained.parent.mkdir()
    trained.write_text('{"step": 2}')
    with pytest.raises(ConfigError, match="has done all its steps=2; raise steps"):
        prepare_train(world.config, resume="newest")
    world.set("steps", 3)
    prepare_train(world.config, resume="newest")
    world.set("steps", 1)
    with pytest.raises(ConfigError, match=r"steps=1.*at step 2; raise steps"):
        prepare_train(world.config, resume="newest")


def test_the_rows_of_the_pre_training_loss_are_read_and_checked_at_the_door(world: World) -> None:
    texts = world.root / "texts.jsonl"
    texts.write_text('{"text": "a b c"}\n{"text": "c d"}\n')
    ptx = {"data": {"path": str(texts)}, "coefficient": 0.1, "sequences_per_mini_batch": 2, "max_tokens": 8}
    world.set("ppo.ptx", ptx)
    data = prepare_train(world.config, resume=None)
    assert data.ptx is not None and data.ptx.rows.begins.tolist() == [0, 4, 7]
    for key, value, said in (
        ("max_tokens", 99, "ppo.ptx.max_tokens=99 is 99 tokens, more than the 64"),
        ("max_tokens", 3, "1 of 2 samples are longer than ppo.ptx.max_tokens=3"),
        ("data", {"path": str(world.root / "none.jsonl")}, "ppo.ptx.data.path="),
        ("data", {"path": str(world.prompts)}, "it has prompt; rename them"),
    ):
        world.set("ppo.ptx", {**ptx, key: value})
        refused(world, said)
    world.set("ppo.ptx", ptx)
    state = {
        "config": dump_config(world.config),
        "prompts": PromptSource(data.training, world.config.seed).state_dict(),
    }
    saved = Checkpoints(world.run_dir / "checkpoints", keep=2)
    saved.save(2, {**state, "ptx": PtxSource(data.ptx, world.config.seed).state_dict()}, lambda folder: None)
    world.set("steps", 3)
    prepare_train(world.config, resume="newest")
    texts.write_text('{"text": "a b c"}\n{"text": "c e"}\n')
    with pytest.raises(ConfigError, match=r"rows in ppo\.ptx\.data are not those of the checkpoint"):
        prepare_train(world.config, resume="newest")


def test_other_prompts_than_those_of_the_checkpoint_are_refused_at_the_door(world: World) -> None:
    prompts = PromptSource(prepare_train(world.config, resume=None)[0], world.config.seed).state_dict()
    for other, said in (
        ({**prompts, "fingerprint": "of other rows"}, r"step-000002: the prompts in prompts.train are not those"),
        ({**prompts, "seed": 99}, r"step-000002: seed=\d+, but the checkpoint has 99"),
        ({}, "does not say where in the data it was written"),
        (None, "does not say where in the data it was written"),
    ):
        state = {"config": dump_config(world.config), "prompts": other}
        Checkpoints(world.run_dir / "checkpoints", keep=2).save(2, state, lambda folder: None)
        with pytest.raises(ConfigError, match=said):
            prepare_train(world.config, resume="newest")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_run_directory_where_nothing_can_be_made(world: World, command: str) -> None:
    world.set("run_dir", "/proc/run")
    refused(world, "run_dir=/proc/run: /proc cannot be written to (No such file", "choose another", command=command)


def test_a_run_directory_that_is_a_file(world: World) -> None:
    world.run_dir.write_text("")
    refused(world, f"run_dir={world.run_dir}", "is a file")


def test_what_is_in_the_output_folder_is_left_alone(world: World) -> None:
    output = world.root / "trained"
    output.mkdir()
    check("reward", world)
    (output / "thesis.txt").touch()
    refused(world, f"reward_training.output={output} is not empty", "another folder", command="reward")
    world.run_dir.mkdir()
    (world.run_dir / "model-run").mkdir()
    (world.run_dir / "model-run" / "run.json").write_text("{}")
    check("train", world)  # another run has a folder of its own there


def test_all_that_is_missing_is_told_at_once(world: World) -> None:
    world.set("prompts.train.path", "nowhere.jsonl")
    world.set("actor.model.path", "./no-policy")
    world.set("reward.model.path", "./no-reward")
    assert len(refused(world, "nowhere.jsonl", "no-policy", "no-reward").splitlines()) == 3


def test_reward_training_must_be_there(world: World) -> None:
    world.set("reward_training", None)
    refused(world, "reward_training: missing", "output, model and pairs", command="reward")
