"""TRL's PPO options, as a command line, YAML or JSON, become a configuration that loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.loading import load_config, validate
from orchestrator.config.run import RunConfig
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.errors import ConfigError
from orchestrator.importing.importer import Imported
from orchestrator.importing.option_table import option_table
from orchestrator.importing.trl import import_trl
from orchestrator.planning.layout_planner import layout

SCRIPT = """\
accelerate launch --config_file zero2.yaml --num_processes 4 \\
    examples/scripts/ppo/ppo_tldr.py \\
    --dataset_name trl-lib/tldr --dataset_test_split validation \\
    --output_dir runs/tldr --learning_rate 3e-6 \\
    --per_device_train_batch_size 16 --gradient_accumulation_steps 4 --total_episodes 1000000 \\
    --model_name_or_path EleutherAI/pythia-1b-deduped \\
    --sft_model_path meta-llama/Meta-Llama-3-8B-Instruct --reward_model_path OpenRLHF/Llama-3-8b-rm-mixture \\
    --local_rollout_forward_batch_size 16 --missing_eos_penalty 1.0 --stop_token eos \\
    --eval_strategy steps --eval_steps 100 --use_peft --lora_r 32 --lora_target_modules q_proj v_proj
"""


def read(tmp_path: Path, text: str) -> Imported:
    path = tmp_path / "x"
    path.write_text(text)
    return import_trl(path)


def loaded(tmp_path: Path, imported: Imported) -> RunConfig:
    ours = tmp_path / "ours.yaml"
    ours.write_text(imported.text)
    return load_config(ours)


def test_a_command_line(tmp_path: Path) -> None:
    imported = read(tmp_path, SCRIPT)
    assert imported.about("to be set") == []
    assert imported.about("missing here") == ["config_file"]
    assert set(imported.about("different here")) == {"bf16", "missing_eos_penalty"}
    assert set(imported.about("means nothing here")) == {
        "model_name_or_path",
        "local_rollout_forward_batch_size",
        "stop_token",
    }
    config = loaded(tmp_path, imported)
    assert (config.rollout.prompts_per_step, config.steps, config.ppo.epochs) == (256, 3907, 4)
    assert config.prompts.heldout is not None and config.prompts.heldout.split == "validation"
    lora, truncated = config.actor.lora, config.ppo.truncated
    assert lora is not None and (lora.rank, lora.alpha, lora.targets) == (32, 32, ("q_proj", "v_proj"))
    assert truncated.type == "penalty" and truncated.score == -1.0 and config.evaluation.every == 100
    assert len(layout(config).gpus) == 4


@pytest.mark.parametrize("write", [json.dumps, lambda data: "".join(f"{k}: {v}\n" for k, v in data.items())])
def test_yaml_and_json_with_their_defaults_written_out(tmp_path: Path, write: Any) -> None:
    imported = read(tmp_path, write({"num_ppo_epochs": 2, "sft_model_path": "a/b", "world_size": 2, "optim": "sgd"}))
    assert imported.about("missing here") == ["optim"]
    config = loaded(tmp_path, imported)
    optimizer, advantage = config.actor.optimizer, config.ppo.advantage
    assert (config.ppo.epochs, config.rollout.prompts_per_step, config.rollout.max_response_tokens) == (2, 16, 53)
    assert (config.rollout.temperature, optimizer.learning_rate, config.critic.optimizer.learning_rate) == (
        0.7,
        3e-6,
        3e-6,
    )
    assert (optimizer.betas, optimizer.epsilon, optimizer.max_gradient_norm) == ((0.9, 0.999), 1e-8, 1e6)
    assert optimizer.schedule.type == "linear" and config.actor.gradient_checkpointing and config.seed == 42
    assert advantage.type == "gae" and advantage.lambda_ == 0.95 and config.dtype == "bfloat16"
    assert config.prompts.too_long == "skip" and config.prompts.max_tokens == 512
    assert config.ppo.kl.controller.model_dump() == {"type": "fixed", "coefficient": 0.05}


@pytest.mark.parametrize(
    ("each", "accumulated", "parts", "made"), [(8, 1, 2, 2), (8, 4, 2, 1), (16, 4, 1, 1), (8, 2, 8, 4), (4, 4, 16, 4)]
)
def test_optimizer_steps_are_those_that_trl_takes(
    tmp_path: Path, each: int, accumulated: int, parts: int, made: int
) -> None:
    """It steps at every n-th of all micro-batches, which are as large as a device takes, or as a smaller mini-batch."""
    batch = each * accumulated
    mini_batch = batch // parts
    assert len([n for _ in range(0, batch, mini_batch) for n in range(0, mini_batch, each)]) == made * accumulated
    data = {"per_device_train_batch_size": each, "gradient_accumulation_steps": accumulated, "num_mini_batches": parts}
    imported = read(tmp_path, json.dumps({**data, "num_ppo_epochs": 3, "world_size": 2, "total_episodes": 10 * batch}))
    config = loaded(tmp_path, imported)
    assert (config.rollout.prompts_per_step, config.ppo.epochs, config.ppo.mini_batches) == (2 * batch, 3, made)
    assert imported.about("different here") == ["bf16"]


def test_optimizer_steps_that_go_on_in_the_next_pass_are_spoken_of(tmp_path: Path) -> None:
    data = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "num_mini_batches": 6}
    imported = read(tmp_path, json.dumps({**data, "num_ppo_epochs": 4, "world_size": 1}))
    assert loaded(tmp_path, imported).ppo.mini_batches == 1
    assert "num_mini_batches" in imported.about("different here")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    for text in ("learning_rate: 1\n", "python train.py --learning_rate 1\n", "[1, 2]"):
        with pytest.raises(ConfigError, match="holds no option of TRL PPO"):
            read(tmp_path, text)


def test_an_option_that_nobody_has_is_called_that(tmp_path: Path) -> None:
    imported = read(tmp_path, "sft_model_path: m\nkl_coeff: 0.1\n")
    assert imported.about("means nothing here") == ["kl_coeff"] and "or a typing error" in imported.text


TABLE = option_table("trl").options
SETS: dict[str, Any] = {
    "kl_estimator": ["k1", "k3"],
    "lr_scheduler_type": ["linear", "cosine", "constant", "polynomial"],
    "eval_strategy": ["no", "steps"],
    "per_device_train_batch_size": [1, 8, 13],
    "num_mini_batches": [1, 2, 8],
    "dataset_name": ["trl-lib/tldr"],
    "num_processes": [1, 3, 16],
}
FLAGS = {name: [True, False] for name, option in TABLE.items() if isinstance(option.default, bool)}
GIVEN = st.fixed_dictionaries({}, optional={name: st.sampled_from(found) for name, found in {**FLAGS, **SETS}.items()})


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(GIVEN)
def test_what_is_written_always_loads(tmp_path_factory: pytest.TempPathFactory, given: dict[str, Any]) -> None:
    text = read(tmp_path_factory.mktemp("any"), json.dumps({"kl_coef": 0.05, **given})).text
    assert validate(parse_yaml(text))
