"""`tetrarch init`: whatever is answered, the file is one that its own commands read."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from orchestrator.commands.app import app
from orchestrator.config.loading import load_config

ANSWERS = ("models/sft", "data/train.jsonl", "my_reward.py", "0")


def init(file: Path, *words: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, ["init", str(file), *words], input=typed)


def options(model: str, prompts: str, reward: str, gpus: str) -> list[str]:
    return ["--model", model, "--prompts", prompts, "--reward", reward, "--gpus", gpus]


def test_what_no_option_says_is_asked(tmp_path: Path) -> None:
    asked, said = tmp_path / "mine.yaml", tmp_path / "again/mine.yaml"
    shown = init(asked, typed="\n".join(ANSWERS) + "\n")
    assert shown.exit_code == 0 and "Model to train" in shown.output and f"tetrarch train {asked}" in shown.output
    assert init(said, *options(*ANSWERS)).exit_code == 0
    assert said.read_text().replace(str(said), str(asked)) == asked.read_text()
    config = load_config(asked)
    assert (config.actor.model.path, config.prompts.train.path, config.run_dir) == (*ANSWERS[:2], "runs/mine")
    assert (config.device, config.reward.type, config.critic.initialise_from) == ("cpu", "function", "policy")


@pytest.mark.parametrize("reward", ["my_reward.py", "https://judge:8000/score", "org/reward-model"])
@pytest.mark.parametrize(("gpus", "nodes"), [(0, 1), (1, 1), (8, 1), (8, 4)])
def test_each_kind_of_reward_on_any_machine_is_a_configuration(
    tmp_path: Path, reward: str, gpus: int, nodes: int
) -> None:
    file = tmp_path / "mine.yaml"
    words = options("meta-llama/Meta-Llama-3-8B", "data/a, b: [1] {c}.jsonl", reward, str(gpus))
    shown = init(file, *words, "--nodes", str(nodes))
    assert shown.exit_code == 0, shown.output
    config = load_config(file)
    assert config.device == ("cuda" if gpus else "cpu") and config.prompts.train.path == "data/a, b: [1] {c}.jsonl"
    if gpus:
        (group,) = config.placement.groups.values()  # type: ignore[union-attr]
        assert group.engines is not None and group.engines.number == gpus * nodes
        assert ("reward" in group.roles) == (config.reward.type == "model")


def test_samples_fit_into_the_context_of_a_model_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text('{"model_type": "llama", "max_position_embeddings": 256}')
    file = tmp_path / "mine.yaml"
    assert init(file, *options(str(tmp_path / "model"), *ANSWERS[1:])).exit_code == 0
    config = load_config(file)
    assert (config.prompts.max_tokens, config.rollout.max_response_tokens) == (171, 85)
    (tmp_path / "model/config.json").write_text('{"model_type": 1}')
    shown = init(tmp_path / "other.yaml", *options(str(tmp_path / "model"), *ANSWERS[1:]))
    assert shown.exit_code == 2 and "config.json says model_type=1" in shown.output
    for context in (1, 2):
        (tmp_path / "model/config.json").write_text(f'{{"model_type": "llama", "max_position_embeddings": {context}}}')
        shown = init(tmp_path / "other.yaml", *options(str(tmp_path / "model"), *ANSWERS[1:]))
        assert shown.exit_code == 2 and f"sequences of {context} tokens" in " ".join(shown.output.split())
    init(tmp_path / "large.yaml", *options(*ANSWERS))
    large = load_config(tmp_path / "large.yaml")
    assert (large.prompts.max_tokens, large.rollout.max_response_tokens) == (512, 256)


def test_the_model_of_eight_billion_fits_on_eight_cards(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    init(file, *options("meta-llama/Meta-Llama-3-8B", "p.jsonl", "org/Meta-Llama-3-8B-reward", "8"))
    shown = CliRunner().invoke(app, ["plan", str(file), "reward.model.path=meta-llama/Meta-Llama-3-8B"])
    assert "It fits." in shown.output, shown.output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*options(*ANSWERS[:3], "8"), "--accelerator", "H100"], "--accelerator=H100: must be one of A100-40GB"),
        (options("", *ANSWERS[1:]), "actor.model.path"),
        ([*options(*ANSWERS), "--nodes", "4"], "--nodes=4 needs --gpus of 1 or more"),
    ],
)
def test_nothing_is_written_that_would_be_refused(tmp_path: Path, words: list[str], said: str) -> None:
    shown = init(tmp_path / "mine.yaml", *words)
    assert shown.exit_code == 2 and said in shown.output
    assert not (tmp_path / "mine.yaml").exists()


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("mine")
    shown = init(file)
    assert shown.exit_code == 2 and "mine.yaml exists" in shown.output and file.read_text() == "mine"
    assert "Model to train" not in shown.output, "nothing is asked first"
