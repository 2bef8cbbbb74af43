"""OpenRLHF's options, as YAML and as a script, become a configuration that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.commands import app as cli
from orchestrator.config.kl import AdaptiveKl, FixedKl
from orchestrator.config.loading import load_config
from orchestrator.config.openrlhf import import_file
from orchestrator.errors import ConfigError
from orchestrator.planning.layout_planner import layout

KEYS = """\
actor_num_nodes: 2
actor_num_gpus_per_node: 4
vllm_num_engines: 2
vllm_tensor_parallel_size: 4
critic_num_nodes: 2
critic_num_gpus_per_node: 4
ref_num_nodes: 2
ref_num_gpus_per_node: 4
reward_num_nodes: 2
reward_num_gpus_per_node: 4
kl_target: 6.0
init_kl_coef: 0.01
adap_kl_ctrl: true
"""
SCRIPT = """\
set -x
# ray start --head --num-gpus 8
ray job submit --address="http://127.0.0.1:8265" \\
   --runtime-env-json='{"working_dir": "/openrlhf"}' \\
   -- python3 -m openrlhf.cli.train_ppo_ray \\
   --ref_num_nodes 1 --ref_num_gpus_per_node 8 \\
   --reward_num_nodes 1 --reward_num_gpus_per_node 8 \\
   --critic_num_nodes 1 --critic_num_gpus_per_node 8 \\
   --actor_num_nodes 1 --actor_num_gpus_per_node 8 \\
   --vllm_num_engines 8 --vllm_tensor_parallel_size 1 \\
   --colocate_all_models --vllm_enable_sleep \\
   --pretrain meta-llama/Meta-Llama-3-8B-Instruct --reward_pretrain OpenRLHF/Llama-3-8b-rm-mixture \\
   --save_path runs/imported --train_batch_size 128 --rollout_batch_size 1024 --n_samples_per_prompt 2 \\
   --max_samples 100000 --max_epochs 1 --num_episodes 2 --prompt_max_len 1024 --generate_max_len=512 \\
   --zero_stage 3 --bf16 --actor_learning_rate 5e-7 --critic_learning_rate 9e-6 --init_kl_coef 1e-3 \\
   --prompt_data data/prompts.jsonl --input_key messages --apply_chat_template --normalize_reward \\
   --adam_offload --gradient_checkpointing --packing_samples --save_steps -1 --use_wandb SECRET
"""


def test_the_known_placement_in_openrlhfs_words(tmp_path: Path) -> None:
    path = tmp_path / "70b.yaml"
    path.write_text(KEYS)
    imported = import_file(path)
    assert imported.left_out == ()
    assert "actor.model.path" in imported.to_fill and "steps" in imported.to_fill
    ours = tmp_path / "ours.yaml"
    ours.write_text(imported.text)
    fill = ["run_dir=r", "steps=1", "prompts.train.path=p", "prompts.max_tokens=8", "actor.model.path=a"]
    fill += ["reward.model.path=r", "rollout.prompts_per_step=8", "rollout.max_response_tokens=8"]
    config = load_config(ours, fill)
    assert config.placement.type == "openrlhf" and config.placement.critic_num_nodes == 2
    controller = config.ppo.kl.controller
    assert isinstance(controller, AdaptiveKl) and (controller.initial, controller.target) == (0.01, 6.0)


def test_a_script(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(SCRIPT)
    imported = import_file(path)
    assert imported.left_out == ("normalize_reward", "use_wandb")
    assert imported.to_fill == ()
    assert "SECRET" not in imported.text
    ours = tmp_path / "ours.yaml"
    ours.write_text(imported.text)
    config = load_config(ours)
    assert (config.steps, config.ppo.mini_batches, config.ppo.epochs) == (195, 16, 1)
    assert (config.prompts.max_tokens, config.rollout.max_response_tokens) == (1024, 512)
    assert config.prompts.column == "messages" and config.prompts.train.limit == 100000
    assert config.actor.zero.offload_optimizer and config.critic.gradient_checkpointing
    assert config.actor.optimizer.learning_rate == 5e-7 and config.critic.optimizer.learning_rate == 9e-6
    assert config.rollout.engine.sleep == 1 and config.checkpoint.every == 0
    controller = config.ppo.kl.controller
    assert isinstance(controller, FixedKl) and controller.coefficient == 1e-3
    assert len(layout(config).gpus) == 8


@pytest.mark.parametrize("text", ["a: 1\n", "echo hello --fast\n", ""])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    with pytest.raises(ConfigError, match="holds no option of OpenRLHF"):
        import_file(path)


def test_the_command_names_what_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(SCRIPT)
    result = CliRunner().invoke(cli.app, ["import-openrlhf", str(path)])
    assert result.exit_code == 0
    assert "type: openrlhf" in result.stdout and "not carried over: normalize_reward" in result.stderr
    assert CliRunner().invoke(cli.app, ["import-openrlhf", str(tmp_path / "nowhere")]).exit_code == 2


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ("input_key: context_messages", {"input_key"}),
        ("num_episodes: 3", {"num_episodes"}),
        ("bf16: false", {"bf16"}),
        ("train_batch_size: 128", {"train_batch_size"}),
        ("train_batch_size: 100\nrollout_batch_size: 1024", {"train_batch_size"}),
        ("kl_target: 6\nadap_kl_ctrl: false\ninit_kl_coef: 0.01", {"kl_target"}),
        ("kl_horizon: 500\nadap_kl_ctrl: true", {"kl_horizon", "adap_kl_ctrl"}),
        ("advantage_estimator: some_other", {"advantage_estimator"}),
        ("remote_rm_url: reward.py", {"remote_rm_url"}),
    ],
)
def test_what_is_lost_is_named(tmp_path: Path, options: str, left_out: set[str]) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(f"actor_num_nodes: 1\n{options}\n")
    assert set(import_file(path).left_out) == left_out


def test_what_has_another_form_here(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "actor_num_nodes: 1\nadvantage_estimator: group_norm\nfreezing_actor_steps: -1\nn_samples_per_prompt: 8\n"
        "remote_rm_url: http://a:1/score,http://b:2/score\n"
    )
    imported = import_file(path)
    assert imported.left_out == ()
    assert "reward.model.path" not in imported.to_fill and "critic.model.path" not in imported.to_fill
    data = yaml.safe_load(imported.text)
    assert data["ppo"]["advantage"] == {"type": "grpo"} and "warmup" not in data.get("critic", {})
    assert data["reward"] == {"type": "remote", "urls": ["http://a:1/score", "http://b:2/score"]}


def test_a_variable_of_the_shell_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.sh"
    path.write_text("python -m openrlhf.cli.train_ppo_ray --rollout_batch_size 8 --train_batch_size $SIZE\n")
    with pytest.raises(ConfigError, match=r"train_batch_size=\$SIZE is not a positive whole number"):
        import_file(path)
