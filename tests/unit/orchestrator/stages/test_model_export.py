"""`tetrarch export` gives, file by file and tensor by tensor, what the run itself would have written then."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import huggingface_hub
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

import roles.zero.sharded
from orchestrator.commands import export_command
from orchestrator.commands.app import app
from orchestrator.config.base import BaseConfig
from orchestrator.config.loading import dump_config, load_root
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.run import RunConfig
from orchestrator.config.sft import SftRun
from orchestrator.errors import ConfigError
from orchestrator.ppo.scores import RunningScale
from orchestrator.run.checkpoint import Checkpoint, Checkpoints, saved_step
from orchestrator.stages.chosen_checkpoint import checkpoint_at, chosen_checkpoint
from orchestrator.stages.measured_policy import policy_to_measure
from orchestrator.stages.model_export import StoredModel
from orchestrator.stages.policy_from_data import PolicyTraining, write_chat_template, write_ends
from roles.config.losses import ValueLossConfig
from roles.critic import Critic
from roles.reward_trainer import RewardTrainer
from roles.rollout_setup import stop_token_ids
from roles.zero.setup import ModelSetup
from roles.zero.trained_rank import TrainedPolicy
from tests.unit.orchestrator.stages.test_model_hub import TOKEN, FakeHub, hub  # noqa: F401 (a fixture)
from tests.unit.wiring import tiny
from tests.unit.wiring.base import base
from tests.unit.wiring.engines import PlainDeepSpeed
from tests.unit.wiring.stage import with_changes
from tests.unit.wiring.test_retraining_keys import retraining_base
from tests.unit.wiring.test_reward_training_keys import reward_base
from tests.unit.wiring.test_sft_keys import sft_base

C = TypeVar("C", bound=BaseConfig)
ROOT = Path(__file__).resolve().parents[4]
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


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """One rank, on a few lines of torch in place of DeepSpeed."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(roles.zero.sharded, "join", lambda device: PlainDeepSpeed)
        patched.setattr(roles.zero.sharded, "gather_by_layer", lambda module: None)
        for name, answer in (("get_rank", 0), ("get_world_size", 1), ("barrier", None)):
            patched.setattr(torch.distributed, name, lambda answer=answer: answer)
        yield


def config_of(root: type[C], said: Mapping[str, Any], folder: Path) -> C:
    """The way of a user's file."""
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(dict(said)))
    return load_root(root, file)


def rank_of(config: BaseConfig, role: str) -> Any:
    """The only rank of a trained role, whose weights have moved."""
    section: Any = config.sharded_section(role)
    setup = ModelSetup(
        model_path=section.model.path,
        device="cpu",
        dtype=config.dtype,
        seed=config.seed,
        zero=section.zero,
        micro_batch_tokens=64,
        optimizer=section.optimizer,
        optimizer_steps=4,
        lora=section.lora,
    )
    pooling = config.reward_training.pooling if isinstance(config, RewardTrainingRun) else None
    made: dict[str, Callable[[], Any]] = {
        "actor": lambda: TrainedPolicy(setup),
        "critic": lambda: Critic(setup, ValueLossConfig(), 1),
        "reward": lambda: RewardTrainer(setup, pooling),
    }
    rank = made[role]()
    draw = torch.Generator().manual_seed(5)
    for parameter in rank._model.module.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
    return rank


def saved(config: BaseConfig, run_dir: Path, *names: str, **more: Any) -> Checkpoint:
    """A checkpoint of the roles `names`, and the folders that their ranks write themselves, in `run_dir`. `more`: state
    of the stage."""
    ranks = {role: rank_of(config, role) for role in names}
    scale = RunningScale()
    scale.update(torch.tensor([1.0, 4.0, 2.5]))

    def write(folder: Path) -> None:
        for role, rank in ranks.items():
            rank.save_state(folder / role)

    state = {"step": STEP, "config": dump_config(config), "value_scale": scale.state_dict(), **more}
    path = Checkpoints(run_dir / "checkpoints", keep=9).save(STEP, state, write)
    for role, rank in ranks.items():
        rank.save_model(run_dir / role, *([scale.mean, scale.deviation] if role == "critic" else []))
    return checkpoint_at(path)


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
    config = config_of(RunConfig, with_changes(base(folder), CASES[name]), tmp_path)
    checkpoint = saved(config, tmp_path, "actor", "critic")
    actor = check_export(checkpoint, "actor", tmp_path / "actor", tmp_path / "out/actor")
    before = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=actor.dtype).state_dict()
    assert any(not torch.equal(weight, before[name]) for name, weight in actor.state_dict().items())
    critic = check_export(checkpoint, "critic", tmp_path / "critic", tmp_path / "out/critic")
    assert critic.config.score_shift == pytest.approx(-2.5)


def test_full_precision_is_rounded_as_the_module_s_weights_are(folder: Path, tmp_path: Path) -> None:
    """DeepSpeed keeps the trained weights in float32 beside those of the module."""
    config = config_of(RunConfig, base(folder), tmp_path)
    checkpoint = saved(config, tmp_path, "actor")
    checkpoint.state["config"] = dump_config(config.model_copy(update={"dtype": "bfloat16"}))
    StoredModel.open(checkpoint, "actor").write(tmp_path / "out")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "actor").state_dict()
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(rounded[name], weight.bfloat16()) for name, weight in whole.items())


@pytest.mark.parametrize(
    ("model", "said", "pooling"),
    [(None, None, "last"), ("policy", "mean", "mean"), ("policy", None, "last"), ("mean-critic", None, "mean")],
)
def test_a_reward_model_is_what_the_run_writes(
    folder: Path, tmp_path: Path, model: str | None, said: str | None, pooling: str
) -> None:
    """In PPO, where it is retrained; from a policy, where its scores are not centred before the run's end; and from a
    model that has a head, whose pooling stays."""
    if model is None:
        config: BaseConfig = config_of(RunConfig, retraining_base(folder), tmp_path)
    else:
        changes = {"reward_training.model.path": str(folder / model), "reward_training.pooling": said}
        config = config_of(RewardTrainingRun, with_changes(reward_base(folder), changes), tmp_path)
    written = check_export(saved(config, tmp_path, "reward"), "reward", tmp_path / "reward", tmp_path / "out")
    assert getattr(written.config, "score_pooling", "last") == pooling


def test_a_fine_tuned_policy_keeps_its_chat_template(folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.content }}{% endfor %}")
    said = with_changes(sft_base(folder), {"sft.chat_template": str(template), "sft.lora": LORA})
    config = config_of(SftRun, said, tmp_path)
    checkpoint = saved(config, tmp_path, "actor")
    write_chat_template(config.sft, tmp_path / "actor")
    check_export(checkpoint, "actor", tmp_path / "actor", tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template.read_text()


def test_a_fine_tuned_policy_ends_its_responses_as_it_has_learned(folder: Path, tmp_path: Path) -> None:
    """A model of an earlier version's checkpoint, which does not say how, ends as the one that it started from."""
    config = config_of(SftRun, sft_base(folder), tmp_path)
    learned = SimpleNamespace(name="data", digest="d")
    stage: Any = SimpleNamespace(step=STEP, learned=learned, data=SimpleNamespace(ends={7: "w7"}))
    checkpoint = saved(config, tmp_path, "actor", **PolicyTraining.state_dict(stage))
    plain = files_in(tmp_path / "actor")
    assert write_ends(tmp_path / "actor", {7: "w7"}) == ["w7"] and files_in(tmp_path / "actor") != plain
    check_export(checkpoint, "actor", tmp_path / "actor", tmp_path / "out")
    assert stop_token_ids(tmp_path / "out", None) == (tiny.ENDS, 7)
    del checkpoint.state["ends"]
    StoredModel.open(checkpoint, "actor").write(tmp_path / "earlier")
    assert files_in(tmp_path / "earlier") == plain


@pytest.fixture(scope="module")
def run_dir(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which step 2 has a checkpoint."""
    made = tmp_path_factory.mktemp("run")
    saved(config_of(RunConfig, base(folder), made), made, "actor", "critic")
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
    with pytest.raises(Exception, match=r"rank-00000\.safetensors holds other bytes than were written"):
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


def test_the_policy_of_a_checkpoint_is_there_while_it_is_measured(run_dir: Path, tmp_path: Path) -> None:
    config: Any = SimpleNamespace(run_dir=str(tmp_path / "new"))
    with policy_to_measure(config, StoredModel.open(chosen_checkpoint(run_dir), "actor")) as policy:
        assert policy.folder is not None and policy.folder.is_relative_to(tmp_path / "new")
        assert files_in(policy.folder) == files_in(run_dir / "actor")
        assert (policy.step, policy.label) == (STEP, "step 2")
    assert list((tmp_path / "new").iterdir()) == []


# The command


def told(*words: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["export", *map(str, words)])
    return result.exit_code, result.output


def test_the_command_leaves_a_folder_with_a_card(run_dir: Path, tmp_path: Path) -> None:
    code, output = told(run_dir, tmp_path / "out", "--role", "critic", "--step", "2")
    assert code == 0 and "the critic of step 2 is in" in output, output
    assert "critic, step 2" in (tmp_path / "out/README.md").read_text()
    code, output = told(run_dir, tmp_path / "out")
    assert code == 2 and "is not empty; remove it, or choose another folder" in output


@pytest.mark.usefixtures("hub")
def test_the_command_uploads_what_it_has_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, output = told(run_dir, tmp_path / "out", "--push-to-hub", "mine")
    assert code == 0 and "uploaded: https://hub/me/mine" in output, output
    assert FakeHub.uploads == [("me/mine", tmp_path / "out", "the actor of step 2")] and TOKEN not in output
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    code, output = told(run_dir, tmp_path / "other", "--push-to-hub", "mine")
    assert code == 2 and "needs a token" in output and not (tmp_path / "other").exists()


@pytest.mark.usefixtures("hub")
def test_a_public_upload_shows_the_card_and_waits_for_a_yes(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["export", str(run_dir), str(tmp_path / "out"), "--push-to-hub", "mine", "--public"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "no terminal to ask on" in result.output and not (tmp_path / "out").exists()
    monkeypatch.setattr(export_command, "_can_ask", lambda: True)
    result = CliRunner().invoke(app, words, input="n\n")
    assert result.exit_code == 0 and "not uploaded" in result.output and FakeHub.uploads == []
    assert "# run: actor, step 2" in result.output.replace(run_dir.name, "run")
    assert result.output.index("actor, step 2") < result.output.index("for everybody to read")
    words[2] = str(tmp_path / "again")
    assert CliRunner().invoke(app, words, input="y\n").exit_code == 0 and len(FakeHub.uploads) == 1
    words[2] = str(tmp_path / "unasked")
    assert CliRunner().invoke(app, [*words, "--yes"]).exit_code == 0 and len(FakeHub.uploads) == 2


def test_the_command_refuses_what_contradicts_itself(run_dir: Path, tmp_path: Path) -> None:
    code, output = told(run_dir, tmp_path / "out", "--step", "2", "--best")
    assert code == 2 and "say one of them" in output
    words = ["evaluate", str(ROOT / "configs/tiny.yaml"), "--step", "2", "--checkpoint", str(run_dir)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "--checkpoint a folder; say one of them" in result.stderr
