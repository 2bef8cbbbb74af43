"""Keys of `tetrarch reward`, from the YAML file to the weights of the reward model and what it was trained on."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from orchestrator.config.loading import load_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.data.preference_pairs import read_pairs
from orchestrator.data.prompts import read_questions
from orchestrator.errors import ConfigError, TetrarchError
from orchestrator.stages.reward_training import RewardQuality, RewardTraining, train_reward
from roles.reward_trainer import RewardTrainer
from roles.text.tokenizer import load_tokenizer
from tests.unit.wiring.base import Case, base, case, check_moved, check_same
from tests.unit.wiring.plain_preferences import Trainer
from tests.unit.wiring.plain_run import Numbers
from tests.unit.wiring.stage import stage, with_changes

PROVES = ("reward_training.minimum_accuracy",)
PAIRS = 8
JUDGE = """
def score(prompts, responses, *, response_token_ids, finished, columns):
    return [float(sum(ids) % 7) for ids in response_token_ids]
def other(prompts, responses, *, response_token_ids, finished, columns):
    return [float(ids[0]) for ids in response_token_ids]
"""


def reward_base(folder: Path) -> dict[str, Any]:
    chosen = [" ".join(f"w{10 + n + k}" for k in range(1 + n % 3)) for n in range(PAIRS)]
    pairs = [{"prompt": f"w{3 + n}", "chosen": chosen[n], "rejected": f"w{25 + n}"} for n in range(PAIRS)]
    pairs = [{**pair, "chosen_probability": 1 - n / 20} for n, pair in enumerate(pairs)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    (folder / "more.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in reversed(pairs)))
    (folder / "judge.py").write_text(JUDGE)
    (folder / "lengths.py").write_text(JUDGE.replace("sum(ids) % 7", "len(ids)"))
    means = shutil.copytree(folder / "critic", folder / "mean-critic", dirs_exist_ok=True)
    said = {**json.loads((means / "config.json").read_text()), "score_pooling": "mean"}
    (means / "config.json").write_text(json.dumps(said))
    dataset = {"path": str(folder / "pairs.jsonl"), "split": "train", "limit": None}
    training = {
        "output": str(folder / "made" / "model"),
        "model": {"path": str(folder / "critic")},
        "pairs": {"type": "dataset", "dataset": dataset},
        "heldout_fraction": 0.25,
        "epochs": 1,
        "groups_per_step": 3,
        "optimizer": base(folder)["actor"]["optimizer"],
        "freeze_backbone": False,
        "pooling": "last",
        "max_tokens": 64,
        "minimum_accuracy": 0.0,
    }
    return {**base(folder), "reward_training": training}


def ran(folder: Path, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Numbers, Numbers]:
    """The program's numbers, and those of plain torch on the batches that it took."""
    said = with_changes(reward_base(folder), changes)
    file = folder / "reward.yaml"
    file.write_text(yaml.safe_dump(said))
    config, training = load_root(RewardTrainingRun, file), said["reward_training"]
    batches: list[Any] = []
    told: list[Any] = []
    found: Numbers = {}

    class Noted(RewardTrainer):
        def update(self, preferences: Any) -> Any:
            batches.append(preferences)
            told.append(super().update(preferences))
            return told[-1]

    with stage() as seen, monkeypatch.context() as patched:
        patched.setattr("orchestrator.groups.build.RewardTrainer", Noted)
        patched.setattr(RewardTraining, "_save", lambda stage, output: None)
        tokenizer = load_tokenizer(said["actor"]["model"]["path"])
        source = (
            read_questions(config.policy.prompts, "train", tokenizer)
            if config.policy
            else read_pairs(config.reward_training.pairs.dataset, tokenizer)  # type: ignore[union-attr]
        )
        # stage 3 is the only one that the section can have; a rank alone has nothing to shard
        patched.setattr("roles.zero.sharded.gather_by_layer", lambda module: None)
        patched.setattr("tests.unit.wiring.engines.PlainDeepSpeed.initialize", whole)
        quality: RewardQuality
        (quality,) = train_reward(config, None, source)
        trainer = seen.groups["reward"]
        found |= {f"weights {name}": tensor.detach().double() for name, tensor in trainer.parameters.items()}
        for number, stats in enumerate(told):
            for name in ("loss", "gradient_norm", "learning_rate"):
                found[f"{name}@{number}"] = torch.tensor(getattr(stats, name)).double()
        asked = {len(batch) for llm in seen.llms for batch in llm.batches}
        found["pairs"] = torch.tensor([quality.training_comparisons, quality.comparisons, *asked]).double()
        plain = Trainer(training, len(batches), trainer.began)
    expected: Numbers = {}
    for number, batch in enumerate(batches):
        assert len(batch.groups.unique()) <= training["groups_per_step"]
        assert int(batch.lengths.max()) <= training["max_tokens"]
        expected |= {f"{name}@{number}": torch.tensor(value).double() for name, value in plain.step(batch).items()}
    groups = len({row for batch in batches for row in batch.groups.tolist()})
    assert len(batches) == training["epochs"] * math.ceil(groups / training["groups_per_step"])
    expected |= {f"weights {name}": tensor.detach() for name, tensor in plain.network.values.items()}
    return found, expected


def whole(**arguments: Any) -> tuple[Any, ...]:
    """As without sharding: `ShardedModel` asks an optimizer under stage 3 for more."""
    from tests.unit.wiring.engines import PlainDeepSpeed

    arguments["optimizer"].empty_partition_cache = lambda: None
    return PlainDeepSpeed(**arguments), None, None, None


def reward_training_cases(folder: Path) -> list[Case]:
    key, optimizer = "reward_training", "reward_training.optimizer"
    schedule = f"{optimizer}.schedule"
    judge = {"type": "function", "path": str(folder / "judge.py"), "name": "score"}
    sampled = {f"{key}.pairs": {"type": "sampled", "judge": judge, "responses_per_prompt": 3, "prompts": 6}}
    dataset = f"{key}.pairs.dataset"
    longer, constant = {f"{key}.epochs": 3}, {f"{schedule}.type": "constant"}
    written, own = f"{key}.pairs<sampled>", {f"{key}.pooling": None}  # as the folder has it
    return [
        case(f"{key}.model.path", "weights", {f"{key}.model.path": str(folder / "other-critic")}),
        case(f"{key}.pairs<dataset>", "weights", {f"{key}.pairs": reward_pairs(folder)}, sampled),
        case(f"{key}.pairs<dataset>.dataset.path", "weights", {f"{dataset}.path": str(folder / "more.jsonl")}),
        case(f"{key}.pairs<dataset>.dataset.limit", "weights pairs", {f"{dataset}.limit": 5}),
        case(f"{key}.pairs<dataset>.dataset.split", "weights pairs", {f"{dataset}.split": "train[3:]"}),
        case(written, "weights", sampled),
        case(f"{written}.judge.path", "weights", {f"{key}.pairs.judge.path": str(folder / "lengths.py")}, sampled),
        case(f"{written}.judge.name", "weights", {f"{key}.pairs.judge.name": "other"}, sampled),
        case(f"{written}.responses_per_prompt", "pairs", {f"{key}.pairs.responses_per_prompt": 4}, sampled),
        case(f"{written}.prompts", "pairs", {f"{key}.pairs.prompts": 8}, sampled),
        case(f"{key}.heldout_fraction", "pairs", 0.5),
        case(f"{key}.epochs", "weights", 3),
        case(f"{key}.groups_per_step", "weights", 2),
        case(f"{key}.freeze_backbone", "weights", True),
        case(f"{key}.pooling=mean", "weights", {f"{key}.pooling": "mean"}),
        case(f"{key}.pooling=last", "weights", {f"{key}.pooling": "last"}, {f"{key}.pooling": "mean"}),
        case(f"{key}.pooling=last", "weights", own, {f"{key}.model.path": str(folder / "mean-critic")}),
        case(f"{key}.max_tokens", "pairs", 4),
        case(f"{optimizer}.learning_rate", "weights", 0.004),
        case(f"{optimizer}.betas", "weights", [0.5, 0.99]),
        case(f"{optimizer}.epsilon", "weights", 1e-1),
        case(f"{optimizer}.weight_decay", "weights", 0.7),
        case(f"{optimizer}.max_gradient_norm", "weights", 0.01),
        case(f"{schedule}.type=constant", "weights", constant, longer),
        case(
            f"{schedule}.type=linear",
            "weights",
            {f"{schedule}.type": "linear"},
            {**longer, f"{schedule}.type": "constant"},
        ),
        case(f"{schedule}.type=cosine", "weights", {f"{schedule}.type": "cosine"}, longer),
        case(f"{schedule}.warmup_steps", "weights", 0),
        case(f"{schedule}.floor", "weights", 0.5, longer),
        case("seed", "weights", 9),
        *ensemble_cases(f"{key}.ensemble"),
    ]


def ensemble_cases(key: str) -> list[Case]:
    def second(of: int, vary: str) -> dict[str, Any]:
        return {key: {"members": of, "vary": vary, "member": 2}}

    return [
        case(f"{key}.members", "weights", {f"{key}.members": 4}, second(2, "fold")),
        case(f"{key}.vary=seed", "weights", {f"{key}.vary": "seed"}, second(2, "fold")),
        case(f"{key}.vary=fold", "weights", {f"{key}.vary": "fold"}, second(2, "seed")),
        case(f"{key}.member", "weights", {f"{key}.member": 1}, second(2, "seed")),
    ]


def reward_pairs(folder: Path) -> dict[str, Any]:
    pairs: dict[str, Any] = reward_base(folder)["reward_training"]["pairs"] if folder.is_dir() else {}
    return pairs


CASES = reward_training_cases(Path("FOLDER"))


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_key_of_the_reward_training_does_what_it_says(
    number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = reward_training_cases(folder)[number]
    first, plain_first = ran(folder, case.given, monkeypatch)
    second, plain_second = ran(folder, {**case.given, **case.change}, monkeypatch)
    check_same(first, plain_first)
    check_same(second, plain_second)
    check_moved({**first, **plain_first}, {**second, **plain_second}, case.moves)


def test_too_low_an_accuracy_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(folder, {"reward_training.minimum_accuracy": 0.0}, monkeypatch)
    with pytest.raises(TetrarchError, match="minimum_accuracy=99%"):
        ran(folder, {"reward_training.minimum_accuracy": 0.99, "reward_training.max_tokens": 5}, monkeypatch)


def test_a_warm_up_of_the_whole_reward_training_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = r"reward_training\.optimizer\.schedule\.warmup_steps=100 is not below the \d+ optimizer step.* lower it"
    with pytest.raises(ConfigError, match=said):
        ran(folder, {"reward_training.optimizer.schedule.warmup_steps": 100}, monkeypatch)
