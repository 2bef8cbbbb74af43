"""`tetrarch plan` of fine-tuning and of reward training: what their groups hold, by hand, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.estimate.memory import GIB, REDUCE_BUCKET, RUNTIME
from orchestrator.commands import app as cli
from orchestrator.commands.training_table import TRAININGS
from orchestrator.config.loading import load_root
from orchestrator.config.roots import ROOTS
from orchestrator.planning.planned_layout import PlannedLayout

ROOT = Path(__file__).resolve().parents[4]
MODEL = "meta-llama/Llama-3.1-8B"
PARAMETERS, HIDDEN, VOCABULARY = 8_030_261_248, 4096, 128_256
SFT = {"output": "made/model", "model": {"path": MODEL}, "data": {"path": "rows.jsonl"}, "max_tokens": 1024}
REWARD = {
    "output": "made/model",
    "model": {"path": MODEL},
    "pairs": {"type": "sampled", "judge": {"path": "judge.py"}, "responses_per_prompt": 4},
}
FILE = {
    "device": "cuda",
    "dtype": "bfloat16",
    "prompts": {"train": {"path": "rows.jsonl"}, "max_tokens": 512},
    "actor": {"model": {"path": MODEL}},
    "rollout": {"max_response_tokens": 512, "prompts_per_step": 8},
    "placement": {
        "type": "groups",
        "pools": {"one": {"nodes": 1, "gpus_per_node": 8, "accelerator": "H100-80GB", "price_per_hour": 36}},
        "groups": {"all": {"pool": "one", "gpus_per_node": 8, "roles": ["actor", "reward"], "engines": {"number": 8}}},
    },
}
DATASET = "reward_training.pairs={type: dataset, dataset: {path: rows.jsonl}}"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**FILE, "sft": SFT, "reward_training": REWARD}))
    return path


def planned(command: str, file: Path, *overrides: str) -> list[PlannedLayout]:
    return list(TRAININGS[command].layouts(load_root(ROOTS[command], file, overrides), None))


def held(layout: PlannedLayout, phase: str) -> dict[str, float]:
    return {item: size for (_, item), size in layout.gpus[0].phases[phase].items()}


def plan(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])


def test_the_states_and_the_work_of_fine_tuning_by_hand(file: Path) -> None:
    (layout,) = planned("sft", file)
    train, test = held(layout, "train actor"), held(layout, "score")
    states = {
        "weights": 2 * PARAMETERS / 8,
        "gradients (float32)": 4 * PARAMETERS / 8,
        "optimizer (float32 weights and moments)": 12 * PARAMETERS / 8,
        "reduction bucket": 2 * REDUCE_BUCKET,
        "runtime": RUNTIME,
    }
    assert {item: train[item] for item in states} == pytest.approx(states)
    assert train["activations"] > 10 * test["activations"], "tests keep nothing for a backward pass"
    assert layout.phases == ("score", "train actor")
    assert layout.sizes["actor"].parameters == PARAMETERS
    assert layout.shortages == [] and layout.steps is None


def test_a_sample_longer_than_a_micro_batch_has_a_pass_of_its_own(file: Path) -> None:
    (short,), (long,) = planned("sft", file), planned("sft", file, "sft.max_tokens=8192")
    assert held(long, "train actor")["activations"] == 2 * held(short, "train actor")["activations"]  # of 4096 tokens


def test_adapters_have_the_only_gradients(file: Path) -> None:
    (layout,) = planned("sft", file, "sft.lora={rank: 8, targets: [q_proj]}")
    adapters = 32 * 8 * (HIDDEN + HIDDEN)
    assert held(layout, "train actor")["gradients (float32)"] == pytest.approx(4 * adapters / 8)


def test_a_reward_model_has_a_head_of_one_number_and_both_responses_in_one_pass(file: Path) -> None:
    (layout,) = planned("reward", file, DATASET, "reward_training.micro_batch_tokens=2048")
    assert layout.sizes["reward"].parameters == PARAMETERS - HIDDEN * VOCABULARY + HIDDEN
    twice = planned("reward", file, DATASET, "reward_training.max_tokens=2048")[0]  # two of 2048 tokens each
    assert held(twice, "train reward")["activations"] == 2 * held(layout, "train reward")["activations"]
    assert any("every group of reward_training.pairs counts as two responses" in note for note in layout.notes)


def test_sampled_pairs_have_engines_before_the_training(file: Path) -> None:
    sampling, training = planned("reward", file, "reward_training.pairs.prompts=100")
    assert (sampling.plan.roles, training.plan.roles) == (["rollout", "judge"], ["reward"])
    assert sampling.phases == ("generate",) and sampling.gpus[0].peak == pytest.approx(0.85 * sampling.gpus[0].capacity)
    assert sampling.step.unit == "100 prompts, each answered 4 times"
    assert training.step.unit == "optimizer step of 64 samples"
    whole = planned("reward", file)[0].step
    assert whole.unit.startswith("1000 prompts") and whole.total > sampling.step.total


def test_both_responses_of_a_pair_are_in_one_pass_and_labelled_ones_alone(file: Path) -> None:
    file.write_text(yaml.safe_dump({**FILE, "dpo": {**SFT, "max_tokens": 4096}}))
    (pairs,), (labels,) = planned("dpo", file), planned("dpo", file, "dpo.loss={type: kto}")
    assert held(pairs, "train actor")["activations"] == 2 * held(labels, "train actor")["activations"]
    assert pairs.step.unit == "optimizer step of 128 samples" and labels.step.unit == "optimizer step of 64 samples"
    assert any("asks the reference" in note for note in pairs.notes)
    assert not any("asks" in note for note in planned("dpo", file, "dpo.loss={type: orpo}")[0].notes)


def test_a_frozen_backbone_keeps_nothing_for_a_backward_pass_and_is_faster(file: Path) -> None:
    whole, head = (planned("reward", file, DATASET, f"reward_training.freeze_backbone={on}")[0] for on in (False, True))
    assert held(head, "train reward")["activations"] == held(whole, "score")["activations"]
    assert held(head, "train reward")["gradients (float32)"] == pytest.approx(4 * HIDDEN / 8)
    assert head.step.total == pytest.approx(whole.step.total / 3, rel=0.1)


def test_the_seconds_are_those_of_the_arithmetic(file: Path) -> None:
    """6 operations a parameter and token, of an embedding none, at 47.5 % of the card's peak."""
    said = ["sft.samples_per_step=512", "sft.micro_batch_tokens=65536", "sft.max_tokens=64"]
    (layout,) = planned("sft", file, *said)
    tokens = 512 / 8 * layout.step.response_tokens
    products = 6 * tokens * (PARAMETERS - HIDDEN * VOCABULARY) / (0.475 * 989e12)
    assert products < layout.step.total < 1.5 * products
    assert layout.step.lengths is not None and layout.step.lengths.longest == 64
    assert layout.price_per_step == pytest.approx(layout.step.total / 100)


@pytest.mark.parametrize("command", list(TRAININGS))
def test_every_training_is_planned_with_the_roles_that_it_starts(command: str) -> None:
    file = Path(__file__).parents[4] / "configs/tiny.yaml"
    said = [f"{key}={{output: made, data: {{path: rows.jsonl}}, model: {{path: {MODEL}}}}}" for key in ("sft", "dpo")]
    models = [f"{key}.model.path={MODEL}" for key in ("actor", "critic", "reward", "reward_training")]
    config = load_root(ROOTS[command], file, [*said, *models])
    layouts = TRAININGS[command].layouts(config, None)
    assert [set(one.plan.roles) for one in layouts] == [set(roles) for roles in TRAININGS[command].roles(config)]


def test_the_command_knows_the_training_from_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text(yaml.safe_dump({**FILE, "sft": SFT}))
    done = plan(file, "--json", tmp_path / "plan.json", "--trace", tmp_path / "trace.json", "--svg", tmp_path / "a.svg")
    assert done.exit_code == 0, done.output
    assert "seconds per optimizer step of 64 samples (samples of 512 tokens)" in done.output
    assert "follows from the data, which a plan does not" in done.output and "It fits." in done.output
    numbers = json.loads((tmp_path / "plan.json").read_text())
    assert (numbers["command"], numbers["fits"], numbers["before"]) == ("sft", True, [])
    assert numbers["gpus"][0]["peak_gib"] == pytest.approx(planned("sft", file)[0].gpus[0].peak / GIB)
    assert "actor update" in (tmp_path / "trace.json").read_text()


def test_a_file_of_two_trainings_is_asked_about(file: Path) -> None:
    done = plan(file)
    assert done.exit_code == 2 and "say which one: --command" in done.output
    done = plan(file, "--command", "reward")
    assert done.exit_code == 0, done.output
    assert done.output.index("the sampling of the pairs:") < done.output.index("the training:")


def test_what_does_not_fit_is_told_with_the_smallest_change(file: Path) -> None:
    done = plan(file, "sft.micro_batch_tokens=131072", "--command", "sft")
    assert done.exit_code == 1, done.output
    assert "The smallest change that makes it fit: sft.gradient_checkpointing=true" in done.output
    done = plan(file, DATASET, "reward_training.micro_batch_tokens=16384", "--command", "reward")
    assert "The smallest change that makes it fit: reward_training.micro_batch_tokens=4096" in done.output
    done = plan(file, f"sft.model.path={MODEL[:-2]}70B", "--command", "sft")
    assert done.exit_code == 1 and "--suggest" not in done.output, "nothing shares there"


def test_what_only_ppo_has_is_refused(file: Path) -> None:
    done = plan(file, "--command", "sft", "--suggest")
    assert done.exit_code == 2 and "--suggest is for a plan of tetrarch train, and this is one of tetrarch sft" in (
        done.output
    )


@pytest.mark.parametrize(("command", "key"), [("sft", "sft"), ("dpo", "dpo"), ("reward", "reward_training")])
def test_on_gpus_the_plan_is_checked_before_anything_starts(command: str, key: str, file: Path) -> None:
    """What is missing besides, the pairs or the judge, is not even looked at."""
    file.write_text(yaml.safe_dump({**FILE, "sft": SFT, "dpo": SFT, "reward_training": REWARD}))
    done = CliRunner().invoke(cli.app, [command, str(file), f"{key}.micro_batch_tokens=1000000"])
    assert done.exit_code == 2 and "see the plan above; change the settings, or say --force" in done.output
    assert "does not exist" not in done.output


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        (
            "serve",
            "is for evaluate and for serve, and for no training (train, reward, sft, dpo); for train it lacks steps.",
        ),
        (
            "label",
            "is for label, and for no training (train, reward, sft, dpo); for train it lacks run_dir, prompts, actor",
        ),
    ],
)
def test_a_file_for_no_training_is_named_as_what_it_is(name: str, lacking: str) -> None:
    done = plan(ROOT / f"configs/{name}.yaml")
    assert done.exit_code == 2 and f"configs/{name}.yaml {lacking}" in " ".join(done.output.split())
