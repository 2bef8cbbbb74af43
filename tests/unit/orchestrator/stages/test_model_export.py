"""`tetrarch export` gives, tensor by tensor and file by file, what the run itself would have written after that step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from orchestrator.config.loading import dump_config, load_root
from orchestrator.config.sft import SftRun
from orchestrator.data.demonstrations import read_demonstrations
from orchestrator.errors import ConfigError
from orchestrator.ppo.scores import RunningScale
from orchestrator.run.checkpoint import Checkpoint, Checkpoints, saved_step
from orchestrator.stages.chosen_checkpoint import checkpoint_at, chosen_checkpoint
from orchestrator.stages.model_export import StoredModel
from orchestrator.stages.policy_from_data import write_chat_template
from orchestrator.stages.sft import SupervisedTraining, train_sft
from roles.text.tokenizer import load_tokenizer
from roles.zero.trained_rank import TrainedRank
from tests.unit.wiring import tiny
from tests.unit.wiring.base import base
from tests.unit.wiring.stage import Seen, stage, trained, with_changes
from tests.unit.wiring.test_retraining_keys import retraining_base
from tests.unit.wiring.test_sft_keys import sft_base

LORA = {"rank": 2, "alpha": 8.0, "targets": "all-linear"}
STEP = 2
CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapters": {"actor.lora": LORA, "critic.lora": LORA},
    "bfloat16": {"dtype": "bfloat16"},
    "critic from the policy": {"critic.model": None, "critic.initialise_from": "policy"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("export")
    tiny.write(made)
    return made


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)


def saved(seen: Seen, config: Any, run_dir: Path, step: int = STEP) -> Checkpoint:
    """A checkpoint of the ranks, and the folders that they write themselves, in `run_dir`."""
    ranks = {role: group.members[0] for role, group in seen.groups.items() if isinstance(group.members[0], TrainedRank)}
    scale = RunningScale()
    scale.update(torch.tensor([1.0, 4.0, 2.5]))

    def write(folder: Path) -> None:
        for role, rank in ranks.items():
            rank.save_state(folder / role)

    checkpoints = Checkpoints(run_dir / "checkpoints", keep=9)
    checkpoints.save(step, {"step": step, "config": dump_config(config), "value_scale": scale.state_dict()}, write)
    for role, rank in ranks.items():
        own: Any = rank
        own.save_model(run_dir / role, *([scale.mean, scale.deviation] if role == "critic" else []))
    found = checkpoints.newest()
    assert found is not None
    return found


def files_in(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != "tetrarch.json"}


def check_export(checkpoint: Checkpoint, role: str, own: Path, exported: Path) -> Any:
    """The exported folder is the run's own, byte by byte; as plain transformers opens it."""
    StoredModel.open(checkpoint, role).write(exported)
    assert files_in(exported) == files_in(own)
    assert saved_step(exported) == checkpoint.step
    auto: Any = AutoModelForCausalLM if role == "actor" else AutoModelForSequenceClassification
    model, report = auto.from_pretrained(exported, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, weight in auto.from_pretrained(own).state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name
    assert len(AutoTokenizer.from_pretrained(exported)) == tiny.VOCABULARY
    return model


@pytest.mark.parametrize("name", CASES)
def test_actor_and_critic_are_what_the_run_writes(folder: Path, tmp_path: Path, name: str) -> None:
    seen = trained(with_changes(base(folder), CASES[name]), folder)
    checkpoint = saved(seen, seen.config, tmp_path)
    actor = check_export(checkpoint, "actor", tmp_path / "actor", tmp_path / "out/actor")
    before = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=actor.dtype).state_dict()
    assert any(not torch.equal(weight, before[name]) for name, weight in actor.state_dict().items())
    critic = check_export(checkpoint, "critic", tmp_path / "critic", tmp_path / "out/critic")
    assert critic.config.score_shift == pytest.approx(-2.5)


def test_a_reward_model_that_is_retrained_is_what_the_run_writes(folder: Path, tmp_path: Path) -> None:
    seen = trained(retraining_base(folder), folder)
    checkpoint = saved(seen, seen.config, tmp_path)
    check_export(checkpoint, "reward", tmp_path / "reward", tmp_path / "out")


def fine_tuned(folder: Path, changes: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Seen, SftRun]:
    file = folder / "sft.yaml"
    file.write_text(yaml.safe_dump(with_changes(sft_base(folder), changes)))
    config = load_root(SftRun, file)
    data = read_demonstrations(config.sft, load_tokenizer(config.sft.model.path), config.seed)
    with stage() as seen, monkeypatch.context() as patched:
        patched.setattr(SupervisedTraining, "save_models", lambda stage: None)
        train_sft(config, None, data)
    return seen, config


def test_a_fine_tuned_policy_keeps_its_chat_template(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = folder / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    seen, config = fine_tuned(folder, {"sft.chat_template": str(template), "sft.lora": LORA}, monkeypatch)
    checkpoint = saved(seen, config, tmp_path)
    write_chat_template(config.sft, tmp_path / "actor")
    check_export(checkpoint, "actor", tmp_path / "actor", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template.read_text()


@pytest.fixture(scope="module")
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which step 2 has a checkpoint."""
    made = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.distributed, "barrier", lambda: None)
        seen = trained(base(folder), folder)
        saved(seen, seen.config, made)
    return made


def test_what_is_removed_once_it_is_open_can_be_written(run_dir: Path, tmp_path: Path) -> None:
    """The run that goes on may remove the checkpoint at any moment."""
    folder = tmp_path / "checkpoints/step-000002"
    shutil.copytree(run_dir / "checkpoints/step-000002", folder)
    stored = StoredModel.open(checkpoint_at(folder), "actor")
    shutil.rmtree(folder)
    stored.write(tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(run_dir / "actor")


@pytest.mark.parametrize("left", ["nothing", "a part"])
def test_what_is_removed_before_it_is_open_is_said(run_dir: Path, tmp_path: Path, left: str) -> None:
    folder = tmp_path / "checkpoints/step-000002"
    shutil.copytree(run_dir / "checkpoints/step-000002", folder)
    checkpoint = checkpoint_at(folder)
    shutil.rmtree(folder if left == "nothing" else folder / "actor/state")
    with pytest.raises(ConfigError, match=r"step-000002 was removed while it was read: .* checkpoint.keep_every"):
        StoredModel.open(checkpoint, "actor")
    with pytest.raises(ConfigError, match="is no whole checkpoint"):
        checkpoint_at(folder)


def test_a_flipped_bit_is_not_exported(run_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "step-000002"
    shutil.copytree(run_dir / "checkpoints/step-000002", folder)
    file = folder / "actor/state/rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Exception, match="rank-00000.safetensors holds other bytes than were written"):
        StoredModel.open(checkpoint_at(folder), "actor")
    StoredModel.open(checkpoint_at(folder), "critic")


def test_a_role_or_step_that_is_not_there_is_refused(run_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--role=reward: .* holds the state of actor and critic"):
        StoredModel.open(chosen_checkpoint(run_dir), "reward")
    assert StoredModel.open(chosen_checkpoint(run_dir)).role == "actor"
    with pytest.raises(ConfigError, match="no whole checkpoint of step 7; it has those of 2"):
        chosen_checkpoint(run_dir, 7)
    with pytest.raises(ConfigError, match="no whole checkpoint; name a run_dir"):
        chosen_checkpoint(tmp_path)


def run_of(run_dir: Path, steps: list[int], metrics: Mapping[int, Mapping[str, float]]) -> Path:
    """A run with empty checkpoints of `steps`, and lines of metrics."""
    for step in steps:
        Checkpoints(run_dir / "checkpoints", keep=9).save(step, {}, lambda folder: None)
    lines = [json.dumps({"step": step, **values}) + "\n" for step, values in metrics.items()]
    (run_dir / "metrics.jsonl").write_text("".join(lines))
    return run_dir


@pytest.mark.parametrize(
    ("metric", "best"), [("sft/heldout_loss", 2), ("dpo/heldout_loss", 2), ("preference/heldout_accuracy", 3)]
)
def test_the_best_is_that_of_the_checkpoints_that_are_there(tmp_path: Path, metric: str, best: int) -> None:
    run = run_of(tmp_path, [2, 3, 4], {1: {metric: 0.1}, 2: {metric: 0.3}, 3: {metric: 0.5}, 4: {"lr/actor": 1.0}})
    assert chosen_checkpoint(run, best=True).step == best
    assert chosen_checkpoint(run).step == 4


def test_a_run_without_an_evaluation_has_no_best(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--best: .*\(it has none\); say --step"):
        chosen_checkpoint(run_of(tmp_path, [2], {2: {"lr/actor": 1.0}}), best=True)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "sft/heldout_loss": 0.5}\n')
    with pytest.raises(ConfigError, match=r"\(its evaluations are of step 1\)"):
        chosen_checkpoint(tmp_path, best=True)
