"""Each kind of bad input is refused with key, value and fix, before anything starts."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from orchestrator.checks.functions import check_function
from orchestrator.checks.preparation import (
    prepare_evaluate,
    prepare_reward,
    prepare_reward_service,
    prepare_serve,
    prepare_train,
)
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.loading import dump_config, validate, validate_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.run import RunConfig
from orchestrator.config.serving import RewardServingRun, ServingRun
from orchestrator.data.comparisons import digest, keep
from orchestrator.data.preference_pairs import Pairs
from orchestrator.data.prompts import PromptSource
from orchestrator.errors import ConfigError
from orchestrator.run.checkpoint import Checkpoints
from roles.batch import Preferences
from roles.config.rewards import FunctionReward

WORDS = ["<pad>", "<eos>", "<unk>", *"abcdefgh"]
REWARD = "def score(prompts, responses, *, response_token_ids, finished, columns):\n    return [0.0] * len(prompts)\n"


def model_folder(path: Path, *, reward: bool = False, words: list[str] = WORDS, **sizes: Any) -> Path:
    """What the door looks at: a configuration, a tokenizer, and the headers of small weights."""
    sizes = {"vocab_size": len(words), "max_position_embeddings": 64, "num_attention_heads": 4, "head_dim": 32, **sizes}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_key_value_heads": 2, "num_hidden_layers": 2, **sizes}
    kind: Any = LlamaForSequenceClassification if reward else LlamaForCausalLM
    kind(LlamaConfig(num_labels=1, **sizes)).save_pretrained(path)
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(path)
    return path


class World:
    """A sound configuration in a folder of its own; tests break one thing each."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.policy = model_folder(root / "policy")
        self.reward = model_folder(root / "reward", reward=True)
        self.prompts = root / "prompts.jsonl"
        self.prompts.write_text('{"prompt": "a b"}\n{"prompt": "c"}\n')
        self.function = root / "score.py"
        self.function.write_text(REWARD)
        self.run_dir = root / "run"
        self.data: dict[str, Any] = {
            "run_dir": str(self.run_dir),
            "model_cache": str(root / "cache"),
            "steps": 2,
            "prompts": {"train": {"path": str(self.prompts)}, "heldout": {"path": str(self.prompts)}, "max_tokens": 8},
            "actor": {"model": {"path": str(self.policy)}},
            "reward": {"type": "model", "model": {"path": str(self.reward)}},
            "rollout": {"prompts_per_step": 4, "max_response_tokens": 8, "engine": {"kv_cache_gib": 0.01}},
            "reward_training": {
                "output": str(root / "trained"),
                "model": {"path": str(self.policy)},
                "max_tokens": 32,
                "pairs": {"type": "sampled", "judge": {"path": str(self.function)}},
            },
        }

    def set(self, path: str, value: Any) -> None:
        *sections, key = path.split(".")
        section = self.data
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value

    @property
    def config(self) -> RunConfig:
        return validate(self.data)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def check(command: str, world: World) -> None:
    if command == "train":
        prepare_train(world.config, resume=None)
    elif command == "evaluate":
        prepare_evaluate(validate_root(EvaluationRun, world.data))
    elif command == "serve":
        prepare_serve(validate_root(ServingRun, world.data))
    elif command == "serve --reward":
        prepare_reward_service(validate_root(RewardServingRun, world.data))
    else:
        prepare_reward(validate_root(RewardTrainingRun, world.data), None)


def refused(world: World, *parts: str, command: str = "train") -> str:
    with pytest.raises(ConfigError) as caught:
        check(command, world)
    message = str(caught.value)
    assert [part for part in parts if part not in message] == [], message
    return message


@pytest.mark.parametrize("command", ["train", "evaluate", "reward"])
def test_a_sound_configuration_passes(world: World, command: str) -> None:
    check(command, world)
    assert not world.run_dir.exists() and not (world.root / "cache").exists()


def test_a_reward_that_is_no_model_passes(world: World) -> None:
    world.set("reward", {"type": "function", "path": str(world.function)})
    world.set("critic.model", {"path": str(world.policy)})
    check("train", world)


# Model folders


@pytest.mark.parametrize("key", ["actor.model", "reference.model", "critic.model", "reward.model"])
def test_a_missing_model_folder(world: World, key: str) -> None:
    world.set(f"{key}.path", "no/such/folder")
    refused(world, f"{key}.path=no/such/folder does not exist", "correct the path")


def test_a_reward_model_that_is_still_to_be_trained(world: World) -> None:
    world.set("reward.model.path", str(world.root / "trained"))
    refused(world, "reward.model.path=", "does not exist", "train it first: tetrarch reward CONFIG")
    check("reward", world)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("config.json", ["has no config.json", "save_pretrained"]),
        ("tokenizer.json", ["has no tokenizer"]),
        ("model.safetensors", ["has no weights"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "evaluate", "reward"])
def test_a_folder_without_one_of_its_files(world: World, name: str, parts: list[str], command: str) -> None:
    (world.policy / name).unlink()
    message = refused(world, *parts, command=command)
    assert f"model.path={world.policy}" in message


def test_weights_that_are_cut_off_or_a_pointer(world: World) -> None:
    weights = world.policy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    refused(world, "actor.model.path=", f"{len(whole) - 4} bytes", f"says {len(whole)}", "fetch it anew")
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    refused(world, "not a safetensors file", "Git LFS")


def test_a_missing_shard(world: World) -> None:
    (world.policy / "model.safetensors").rename(world.policy / "part-1.safetensors")
    index = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}
    (world.policy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(world, "lacks 1 of 2 weight files, part-2.safetensors first")
    shutil.copy(world.policy / "part-1.safetensors", world.policy / "part-2.safetensors")
    check("train", world)


def test_broken_small_files(world: World) -> None:
    (world.policy / "config.json").write_text("{")
    refused(world, "actor.model", "config.json cannot be read")
    (world.policy / "config.json").write_text("{}")
    refused(world, "actor.model.path=", "names no model_type")
    (world.policy / "config.json").write_text('{"model_type": "t5", "is_encoder_decoder": true}')
    refused(world, "encoder-decoder", "decoder-only")


def test_a_gguf_file_that_is_not_there(world: World) -> None:
    folder = world.root / "gguf"
    folder.mkdir()
    world.set("actor.model.path", str(folder))
    world.set("actor.model.gguf_file", "model.q4.gguf")
    refused(world, "actor.model.gguf_file=model.q4.gguf is not in", "no GGUF file at all")
    (folder / "Model.Q4_1.gguf").write_bytes(b"<html>")
    refused(world, "did you mean Model.Q4_1.gguf?")
    world.set("actor.model.gguf_file", "Model.Q4_1.gguf")
    refused(world, "actor.model.gguf_file=Model.Q4_1.gguf is not a GGUF file")
    world.set("actor.model.gguf_file", None)
    refused(world, "has no config.json", "set actor.model.gguf_file=Model.Q4_1.gguf")


def test_more_layers_than_there_are(world: World) -> None:
    world.set("actor.model.layers", 3)
    refused(world, "actor.model.layers=3", "has 2")


def test_a_reward_model_that_is_none(world: World) -> None:
    world.set("reward.model.path", str(world.policy))
    refused(world, "reward.model.path=", "LlamaForCausalLM, not a reward model", "tetrarch reward CONFIG")


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The folder's tensors after `change`, in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def say(folder: Path, **keys: Any) -> None:
    """Change the folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | keys))


@pytest.mark.parametrize("labels", [2, 3])
def test_a_classifier_with_several_labels_is_no_reward_model(world: World, labels: int) -> None:
    """The head's rows count, whatever config.json says: transformers leaves out that there are two."""
    rewrite(world.reward, lambda tensors: tensors.update({"score.weight": np.zeros((labels, 32), np.float32)}))
    refused(world, f"reward.model.path={world.reward}", f"has {labels} labels", "num_labels=1")


@pytest.mark.parametrize("labels", [None, {"0": "LABEL_0", "1": "LABEL_1"}])
@pytest.mark.parametrize("head", ["score", "value_head", "v_head.summary"])
def test_reward_models_of_other_programs_pass(world: World, head: str, labels: dict[str, str] | None) -> None:
    """One row is one label; OpenRLHF's architecture has a name that transformers does not know."""
    say(world.reward, architectures=["RewardModel"], id2label=labels, mean=0.1, std=2.0)

    def change(tensors: dict[str, Any]) -> None:
        tensors[f"{head}.weight"] = tensors.pop("score.weight")
        tensors[f"{head}.bias"] = np.zeros(1, np.float32)

    rewrite(world.reward, change)
    check("train", world)


def test_a_normalisation_that_is_none(world: World) -> None:
    say(world.reward, mean=0.5, std=0)
    refused(world, f"reward.model.path={world.reward}", "mean=0.5, std=0", "std above 0")


ROLES = [
    ("actor.model", "train"),
    ("reference.model", "train"),
    ("critic.model", "train"),
    ("reward.model", "train"),
    ("actor.model", "evaluate"),
    ("actor.model", "reward"),
    ("reward_training.model", "reward"),
]


@pytest.mark.parametrize(("key", "command"), ROLES)
def test_weights_that_are_missing_or_too_many_are_named(world: World, key: str, command: str) -> None:
    folder = model_folder(world.root / "other", reward=key == "reward.model")
    world.set(key, {"path": str(folder)})
    check(command, world)
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.extra.bias": np.zeros(3, np.float32)}))
    refused(world, f"{key}.path={folder}", "has not: model.layers.0.extra.bias", command=command)
    rewrite(folder, lambda tensors: tensors.pop("model.layers.0.extra.bias"))
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refused(world, f"{key}.path={folder}", "lacks weights", "model.layers.1.mlp.up_proj.weight", command=command)


def test_a_head_is_weights_too_many_of_a_policy_alone(world: World) -> None:
    rewrite(world.policy, lambda tensors: tensors.update({"score.bias": np.zeros(1, np.float32)}))
    refused(world, "actor.model.path=", "has not: score.bias")
    rewrite(world.policy, lambda tensors: tensors.pop("score.bias"))
    world.set("critic.initialise_from", "policy")
    check("train", world)


def test_a_critic_from_a_policy_needs_an_architecture_with_a_classifier(world: World) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 1}
    GraniteForCausalLM(GraniteConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(world.policy)
    world.set("critic.initialise_from", "policy")
    refused(world, "actor.model.path=", "cannot make a model ForSequenceClassification", "granite")


def test_quantised_weights(world: World) -> None:
    say(world.policy, quantization_config={"quant_method": "fp8"})
    refused(world, "actor.model.path=", "is quantised")


@pytest.mark.parametrize(
    "change", [{"num_attention_heads": 0}, {"hidden_size": "big"}, {"num_attention_heads": "four"}]
)
def test_a_config_of_nonsense(world: World, change: dict[str, Any]) -> None:
    say(world.policy, **change)
    (key, value), *_ = change.items()
    refused(world, f"actor.model.path={world.policy}: config.json says {key}={value!r}, which is no size")


@pytest.mark.parametrize(("head", "command"), [(16, "train"), (16, "evaluate"), (16, "reward"), (48, "train")])
def test_heads_that_vllm_on_cpu_has_not(world: World, head: int, command: str) -> None:
    model_folder(world.policy, head_dim=head)
    world.set("reward_training.model.path", str(model_folder(world.root / "backbone")))
    refused(world, "actor.model.path=", f"attention heads of {head} numbers", "32, 64, 80", command=command)


# Tokenizers

MOVED = ["<pad>", "<eos>", "<unk>", *"bacdefgh"]


@pytest.mark.parametrize("key", ["reward.model", "critic.model", "reference.model"])
def test_a_model_with_another_tokenizer(world: World, key: str) -> None:
    other = model_folder(world.root / "other", reward=key == "reward.model", words=MOVED)
    world.set(f"{key}.path", str(other))
    message = refused(world, f"{key}.path={other} has another tokenizer than actor.model.path=", "'a' is 3 and 4")
    assert ("text_bridge: true" in message) == (key == "reward.model")


def test_a_text_bridge_lets_the_reward_model_read_otherwise(world: World) -> None:
    world.set("reward.model.path", str(model_folder(world.root / "other", reward=True, words=MOVED)))
    world.set("reward.text_bridge", True)
    refused(world, "critic.model is null", "another tokenizer", "set critic.initialise_from: policy")
    world.set("critic.initialise_from", "policy")
    check("train", world)


def test_normalised_values_need_a_new_head(world: World) -> None:
    world.set("critic.model.path", str(model_folder(world.root / "critic", reward=True)))
    world.set("ppo.value.normalise", True)
    refused(world, "ppo.value.normalise=true", "critic.model", "speaks in plain units")
    world.set("critic.model.path", str(world.policy))
    check("train", world)


def test_a_tokenizer_without_eos(world: World) -> None:
    file = world.policy / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": None}))
    refused(world, "actor.model.path=", "no EOS token", "eos_token")


def test_a_tokenizer_whose_only_special_token_is_eos(world: World) -> None:
    """As GPT-2's: nothing reads padding."""
    file = world.policy / "tokenizer_config.json"
    told = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("pad_token", "unk_token")}
    tokens = json.loads((world.policy / "tokenizer.json").read_text())
    tokens["added_tokens"] = [token for token in tokens["added_tokens"] if token["content"] == "<eos>"]
    (world.policy / "tokenizer.json").write_text(json.dumps(tokens))
    for pad in ({}, {"pad_token": "<eos>"}):
        file.write_text(json.dumps({**told, **pad}))
        world.set("reward", {"type": "function", "path": str(world.function)})
        world.set("critic.initialise_from", "policy")
        check("train", world)


def test_a_tokenizer_larger_than_the_embedding(world: World) -> None:
    model_folder(world.policy, vocab_size=5)
    refused(world, "actor.model.path=", "11 tokens", "only 5 embeddings", "resize")


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
    refused(world, "rollout.engine.kv_cache_gib=1e-06", "one sample of 16 tokens", "raise it")


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
        ('{"question": "a"}\n', "none of the columns prompt, messages, prompt_token_ids"),
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


PAIRS = "".join(f'{{"prompt": "{prompt}", "chosen": "b", "rejected": "c"}}\n' for prompt in "aeiou")


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
    mine = Preferences(tokens, lengths, torch.arange(10) // 2, torch.arange(10.0))
    run_dir = going_on(world, preferences=mine, step=1)
    goes_on(world)  # they will be sampled again
    keep(mine, run_dir / "comparisons.safetensors")
    goes_on(world)
    keep(dataclasses.replace(mine, ranks=-mine.ranks), run_dir / "comparisons.safetensors")
    with pytest.raises(ConfigError, match="step-000001 was trained on other comparisons"):
        goes_on(world)


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


def test_other_prompts_than_those_of_the_checkpoint_are_refused_at_the_door(world: World) -> None:
    prompts = PromptSource(prepare_train(world.config, resume=None)[0], world.config.seed).state_dict()
    for other, said in (
        ({**prompts, "fingerprint": "of other rows"}, r"step-000002: the prompts in prompts.train are not those"),
        ({**prompts, "seed": 99}, r"step-000002: seed=\d+, but the checkpoint has 99"),
        ({}, "does not say at which prompt it was written"),
        (None, "does not say at which prompt it was written"),
    ):
        state = {"config": dump_config(world.config), "prompts": other}
        Checkpoints(world.run_dir / "checkpoints", keep=2).save(2, state, lambda folder: None)
        with pytest.raises(ConfigError, match=said):
            prepare_train(world.config, resume="newest")


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


# Reward functions


@pytest.mark.parametrize(
    ("key", "command"),
    [("reward", "train"), ("evaluation.judge", "train"), ("reward_training.pairs.judge", "reward")],
)
def test_a_missing_reward_function_file(world: World, key: str, command: str) -> None:
    world.set("critic.model", {"path": str(world.policy)})
    world.set(key, {"type": "function", "path": "nowhere.py"})
    refused(world, f"{key}.path=nowhere.py does not exist", command=command)


@pytest.mark.parametrize(
    "text",
    [
        REWARD,
        "def score(prompts, responses, **more): ...",
        "def score(*args, **more): ...",
        "def score(a, b, response_token_ids, finished, columns, extra=1): ...",
        "def score(a, b, *, finished, columns, response_token_ids, extra=1): ...",
        "from elsewhere import score",
        "score = make_score()",
        "score = lambda prompts, responses, **more: [0.0]",
        "import os, numpy.linalg\nfrom elsewhere import x\ntry: import nowhere\nexcept ImportError: pass\n" + REWARD,
        "@given_the_rest\ndef score(prompts, responses): ...",
        "def score(prompts, responses, **more):\n    def of(x): return {}\n    return [of(x) for x in responses]",
        "def score(prompts, responses, **more):\n    yield from ()",
        "def score(p, r, /, response_token_ids, finished, columns): ...",
        "if True:\n    def score(prompts, responses, **more): ...",
        "raise RuntimeError('never run at the door')\n" + REWARD,
    ],
)
def test_functions_that_can_be_called(tmp_path: Path, text: str) -> None:
    path = tmp_path / "reward.py"
    path.write_text(text)
    (tmp_path / "elsewhere.py").write_text("")
    check_function(FunctionReward(type="function", path=str(path)), "reward")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("def score(:", ["is not Python", "line 1"]),
        ("def scores(prompts, responses, **more): ...", ["reward.name=score is not defined", "did you mean `scores`?"]),
        ("x = 1", ["reward.name=score is not defined", "define score(prompts, responses"]),
        (
            "import os\n\nimport nothing_here.x\n" + REWARD,
            ["line 3 imports `nothing_here`, which is neither installed here nor beside the file"],
        ),
        ("from . import x\n" + REWARD, ["line 1 imports relatively", "import by name"]),
        ("a\0b", ["is not Python:", "null bytes"]),
        ("x = " + "-" * 100_000 + "1", ["nested too deeply"]),
        ("class score: pass", ["line 1: score is a class, not a function"]),
        ("\nscore = 3", ["line 2: score is 3, not a function"]),
        ("score = lambda prompts: [0.0]", ["score takes 1 positional arguments"]),
        ("def score(p, r, response_token_ids, finished, columns, /): ...", ["columns only by position"]),
        ("def score(p, r, **more):\n    import sys; sys.exit(3)", ["ends its process (line 2: sys.exit)"]),
        ("def score(p, r, **more):\n    return {0: 1.0}", ["returns {0: 1.0} (line 2), not a list of numbers"]),
        ("def score(p, r, **more):\n    if p:\n        return 'x'\n    return [1]", ["returns 'x' (line 3)"]),
        ("def score(p, r, **more):\n    return", ["returns nothing (line 2)"]),
        ("def score(p, r, **more):\n    print(r)", ["returns nothing (it has no `return`)"]),
        ("async def score(prompts, responses, **more): ...", ["is async"]),
        ("def score(prompts, **more): ...", ["takes 1 positional arguments"]),
        ("def score(prompts, responses): ...", ["does not take response_token_ids, finished, columns"]),
        ("def score(prompts, responses, *, columns, **more): ...", []),
        ("def score(prompts, responses, *, answers, **more): ...", ["needs answers, which it is not given"]),
        ("def score(prompts, responses, answers, **more): ...", ["needs answers"]),
    ],
)
def test_functions_that_cannot(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = tmp_path / "reward.py"
    path.write_text(text)
    config = FunctionReward(type="function", path=str(path))
    if not parts:
        check_function(config, "reward")
        return
    with pytest.raises(ConfigError) as caught:
        check_function(config, "reward")
    assert [part for part in [*parts, str(path)] if part not in str(caught.value)] == [], caught.value


def test_functions_for_openrlhf_have_its_three_arguments(tmp_path: Path) -> None:
    path = tmp_path / "reward.py"
    config = FunctionReward(type="function", path=str(path), name="reward_func", protocol="openrlhf")
    path.write_text("def reward_func(queries, prompts, labels):\n    return {'rewards': 1.0}\n")
    check_function(config, "reward")
    path.write_text("def reward_func(queries, prompts):\n    return 1.0\n")
    with pytest.raises(ConfigError, match=r"takes 2 positional arguments, not 3; .* reward_func\(queries, prompts"):
        check_function(config, "reward")
