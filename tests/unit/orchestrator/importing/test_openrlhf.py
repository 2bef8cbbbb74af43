"""OpenRLHF's options, as YAML and as scripts, become a configuration that loads, and nothing is dropped in silence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestrator.commands import app as cli
from orchestrator.config.evaluation import EvaluationSampling
from orchestrator.config.kl import AdaptiveKl, FixedKl
from orchestrator.config.loading import load_config, validate
from orchestrator.config.run import RunConfig
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.errors import ConfigError
from orchestrator.importing.importer import Imported
from orchestrator.importing.openrlhf import import_openrlhf
from orchestrator.importing.option_table import Option, option_table
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
DOTTED = """\
#!/bin/bash
SCRIPT_DIR="$(dirname "$0")"
WORK_DIR=$(cd "$SCRIPT_DIR/../.." && pwd)
MODEL="Qwen/Qwen3-4B-Thinking-2507"

FILES=(
   --actor.model_name_or_path ${MODEL}
   # --reward.model_name_or_path ${REWARD_MODEL}
   --ckpt.output_dir ${WORK_DIR}/exp/${MODEL##*/}
   --ckpt.save_steps ${SAVE_STEPS:-10}
   --ckpt.load_enable
)
ROLLOUT=(
   --reward.remote_url http://rm-0:5000/get_reward,http://rm-1:5000/get_reward
   --data.prompt_dataset data/math.jsonl,data/code.jsonl
   --data.prompt_probs 0.7,0.3
   --data.input_key question --data.label_key answer --data.apply_chat_template
   --data.max_len 3072 --rollout.max_new_tokens 2048
   --rollout.batch_size 128 --rollout.n_samples_per_prompt 8 --train.batch_size 512
   --data.max_samples 12800
   --ds.packing_samples
   --train.dynamic_batch_enable --train.max_tokens_per_gpu 16192
)
ENGINES=(
   --actor.num_nodes 1 --actor.num_gpus_per_node 4 --ref.num_nodes 1 --ref.num_gpus_per_node 4
   --vllm.num_engines 2 --vllm.tensor_parallel_size 2 --vllm.gpu_memory_utilization 0.7
   --vllm.enforce_eager --fsdp.param_dtype bf16 --train.async_enable --train.colocate_all
)
ALGORITHM=(
   --algo.advantage.estimator reinforce_baseline
   --algo.kl.use_loss --algo.kl.estimator k2 --algo.kl.init_coef 1e-5
   --algo.advantage.is_correction_level token --algo.advantage.is_correction_threshold 0.4 4.0
   --actor.eps_clip_low_high 0.2 0.27 --actor.dual_clip 3 --actor.entropy_coef 0.001
   --actor.adam.lr 5e-7 --actor.adam.betas 0.9 0.98
   --reward.overlong_buffer_len 512 --reward.stop_properly_penalty_coef 0.0
   --ds.lora.rank 32 --ds.lora.alpha 64 --ds.lora.target_modules q_proj v_proj
)
bash -c "python3 -m openrlhf.cli.train_ppo_ray \\
   ${FILES[*]} ${ROLLOUT[*]} ${ENGINES[*]} ${ALGORITHM[*]}" 2>&1 | tee log
"""


def read(tmp_path: Path, text: str) -> Imported:
    path = tmp_path / "x"
    path.write_text(text)
    return import_openrlhf(path)


def loaded(tmp_path: Path, imported: Imported, *overrides: str) -> RunConfig:
    ours = tmp_path / "ours.yaml"
    ours.write_text(imported.text)
    return load_config(ours, overrides)


def options(**given: Any) -> str:
    models = {"pretrain": "meta-llama/Meta-Llama-3-8B-Instruct", "reward_pretrain": "OpenRLHF/Llama-3-8b-rm-mixture"}
    said = {"actor_num_nodes": 1, "vllm_num_engines": 8, "max_samples": 100_000, **models}
    return yaml.safe_dump({**said, **given}, sort_keys=False)


def test_the_known_placement_in_openrlhfs_words(tmp_path: Path) -> None:
    imported = read(tmp_path, KEYS)
    assert imported.about("missing here") == []
    assert {"actor.model.path", "reward.model.path", "prompts.train.path", "steps"} == set(imported.about("to be set"))
    config = loaded(tmp_path, imported)
    assert config.placement.type == "openrlhf" and config.placement.critic_num_nodes == 2
    assert config.placement.colocate_engines is False  # without colocate_all_models, theirs have cards of their own
    controller = config.ppo.kl.controller
    assert isinstance(controller, AdaptiveKl) and (controller.initial, controller.target) == (0.01, 6.0)


def test_a_script(tmp_path: Path) -> None:
    imported = read(tmp_path, SCRIPT)
    assert imported.about("missing here") == ["use_wandb"]
    assert imported.about("different here") == ["apply_chat_template", "normalize_reward"]
    assert imported.about("means nothing here") == ["packing_samples"]
    assert imported.about("to be set") == []
    assert "SECRET" not in imported.text
    config = loaded(tmp_path, imported)
    assert (config.steps, config.ppo.mini_batches, config.ppo.epochs) == (195, 16, 1)
    assert (config.prompts.max_tokens, config.rollout.max_response_tokens) == (1024, 512)
    assert config.prompts.column == "messages" and config.prompts.train.limit == 100000
    assert config.actor.zero.offload_optimizer and config.critic.gradient_checkpointing
    assert config.actor.optimizer.learning_rate == 5e-7 and config.critic.optimizer.learning_rate == 9e-6
    assert config.rollout.engine.sleep == 1 and config.checkpoint.every == 0
    assert config.ppo.score.normalise
    controller = config.ppo.kl.controller
    assert isinstance(controller, FixedKl) and controller.coefficient == 1e-3
    assert len(layout(config).gpus) == 8


def test_their_defaults_are_written_out_where_ours_differ(tmp_path: Path) -> None:
    config = loaded(tmp_path, read(tmp_path, SCRIPT))
    advantage, optimizer = config.ppo.advantage, config.actor.optimizer
    assert advantage.type == "gae" and (advantage.lambda_, advantage.gamma) == (1, 1)
    assert (config.ppo.value.clip, config.ppo.value.coefficient, config.ppo.score.clip) == (0.5, 1.0, 10.0)
    assert (optimizer.schedule.type, optimizer.schedule.floor) == ("cosine", 0.1)
    assert optimizer.schedule.warmup_steps == 94  # 3 % of 195 x 16
    assert (optimizer.epsilon, optimizer.betas, config.seed) == (1e-8, (0.9, 0.95), 42)
    assert config.prompts.too_long == "truncate" and config.checkpoint.keep == 3
    plain = loaded(tmp_path, read(tmp_path, "actor.num_nodes: 1\n"))
    assert isinstance(plain.ppo.kl.controller, FixedKl) and plain.ppo.kl.controller.coefficient == 0.01
    assert (plain.ppo.epochs, plain.actor.zero.stage, plain.reference.zero.stage) == (1, 2, 0)


def test_a_script_of_lists_with_dotted_names(tmp_path: Path) -> None:
    imported = read(tmp_path, DOTTED)
    assert imported.about("to be set") == ["run_dir"]
    assert imported.about("missing here") == ["train.async_enable"]
    moot = {"ds.packing_samples", "train.dynamic_batch_enable", "ckpt.load_enable"}
    assert set(imported.about("means nothing here")) == moot
    config = loaded(tmp_path, imported)
    sources = list(config.prompts.train.sources.values())
    assert [source.path for source in sources] == ["data/math.jsonl", "data/code.jsonl"]
    assert [source.weight for source in sources] == [0.7, 0.3] and sources[1].limit == 12800
    assert config.prompts.column == "question"
    assert (config.prompts.max_tokens, config.rollout.max_response_tokens) == (1024, 2048)
    reward, policy, lora = config.reward, config.ppo.policy, config.actor.lora
    assert reward.type == "remote" and (reward.protocol, reward.label, len(reward.urls)) == ("openrlhf", "answer", 2)
    assert config.ppo.advantage.type == "reinforce++-baseline" and config.critic == type(config.critic)()
    assert (config.ppo.kl.where, config.ppo.kl.estimator) == ("loss", "k2")
    assert (policy.clip, policy.clip_high, policy.dual_clip, policy.entropy_coefficient) == (0.2, 0.27, 3, 0.001)
    importance, truncated = policy.importance, config.ppo.truncated
    assert importance.type == "icepop" and (importance.low, importance.high) == (0.4, 4.0)
    assert truncated.type == "penalty" and truncated.score == 0.0
    assert config.actor.optimizer.betas == (0.9, 0.98) and config.actor.micro_batch_tokens == 16192
    assert lora is not None and (lora.rank, lora.alpha, lora.targets) == (32, 64, ("q_proj", "v_proj"))
    assert (config.steps, config.ppo.mini_batches, config.checkpoint.every) == (100, 2, 10)
    placement = config.placement
    assert placement.type == "openrlhf" and placement.colocate_all_models
    assert placement.colocate_engines is False  # asynchronous runs share no card with the engines
    assert len(layout(config).gpus) == 8


@pytest.mark.parametrize("text", ["a: 1\n", "echo hello --fast\n", ""])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="holds no option of OpenRLHF"):
        read(tmp_path, text)


def test_the_command_names_what_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "train.sh"
    path.write_text(SCRIPT)
    result = CliRunner().invoke(cli.app, ["import-openrlhf", str(path)])
    assert result.exit_code == 0
    assert "type: openrlhf" in result.stdout and "different here: normalize_reward" in result.stderr
    assert "missing here: use_wandb" in result.stderr and "#   use_wandb: metrics go to" in result.stdout
    assert CliRunner().invoke(cli.app, ["import-openrlhf", str(tmp_path / "nowhere")]).exit_code == 2


LEVEL, MODE, GATING = (f"algo.advantage.is_correction_{name}" for name in ("level", "mode", "gating"))
OLD = {"enable_vllm_is_correction": True}


@pytest.mark.parametrize(
    ("given", "kind", "about"),
    [
        ({"bf16": False}, "different here", "bf16"),
        ({"train_batch_size": 100, "rollout_batch_size": 1024}, "different here", "train_batch_size"),
        ({"kl_target": 6, "adap_kl_ctrl": False}, "means nothing here", "kl_target"),
        ({"kl_horizon": 500}, "means nothing here", "kl_horizon"),
        ({"agent_func_path": "agent.py"}, "to be set", "environment.path"),
        ({"advantage_estimator": "flash_reinforce"}, "different here", "advantage_estimator"),
        (
            {"advantage_estimator": "reinforce", "value_clip": 0.1},
            "means nothing here",
            "value_clip",
        ),
        ({"policy_loss_type": "gspo"}, "different here", "actor.eps_clip"),
        ({"top_p": 0.9}, "different here", "top_p"),
        ({"ref_num_gpus_per_node": 4, "colocate_actor_ref": True}, "different here", "ref_num_gpus_per_node"),
        (
            {**OLD, "vllm_is_truncated_threshold": [0.5, 5.0]},
            "different here",
            "vllm_is_trunc",
        ),
        (
            {LEVEL: "token", GATING: "tv"},
            "missing",
            "gating",
        ),
        ({"dynamic_filtering": True}, "missing here", "dynamic_filtering"),
        (
            {"dynamic_filtering": True, "n_samples_per_prompt": 8, "dynamic_filtering_reward_range": [0.1, 0.9]},
            "missing here",
            "reward_range",
        ),
        ({"lora_alpha": 32}, "means nothing here", "lora_alpha"),
        ({"some_new_flag": 1}, "missing here", "some_new_flag"),
    ],
)
def test_what_is_lost_is_named(tmp_path: Path, given: dict[str, Any], kind: str, about: str) -> None:
    imported = read(tmp_path, options(**given))
    assert any(remark.kind.startswith(kind) and about in remark.about for remark in imported.remarks), imported.remarks


@pytest.mark.parametrize("estimator", ["rloo", "reinforce_baseline", "group_norm", "dr_grpo"])
def test_a_penalty_among_what_is_compared_is_told(tmp_path: Path, estimator: str) -> None:
    given = {"n_samples_per_prompt": 8}

    def told(**more: Any) -> bool:
        imported = read(tmp_path, options(**{"advantage_estimator": estimator, **given, **more}))
        loaded(tmp_path, imported)
        return "advantage_estimator" in imported.about("different here")

    assert told() and told(kl_target=6)
    assert not told(use_kl_loss=True, kl_estimator="k2") and not told(init_kl_coef=0)
    assert not told(advantage_estimator="reinforce")


def test_dynamic_filtering_draws_other_prompts(tmp_path: Path) -> None:
    imported = read(tmp_path, options(dynamic_filtering=True, n_samples_per_prompt=8))
    sampling = loaded(tmp_path, imported).ppo.dynamic_sampling
    assert sampling is not None and sampling.rounds == 4
    assert "dynamic_filtering" in imported.about("different here")
    assert loaded(tmp_path, read(tmp_path, options(n_samples_per_prompt=8))).ppo.dynamic_sampling is None


def test_what_has_another_form_here(tmp_path: Path) -> None:
    given = {"advantage_estimator": "group_norm", "freezing_actor_steps": -1, "n_samples_per_prompt": 8}
    urls = "http://a:1/score,http://b:2/score"
    config = loaded(tmp_path, read(tmp_path, options(**given, remote_rm_url=urls)))
    assert config.ppo.advantage.type == "grpo" and config.critic.warmup.max_steps == 0
    assert config.reward.type == "remote" and config.reward.urls == urls.split(",")


@pytest.mark.parametrize(
    ("given", "sampling", "each"),
    [
        ({}, {"temperature": 0.6}, 4),
        ({"eval_temperature": 0, "eval_n_samples_per_prompt": 1}, {"temperature": 0}, 1),
        ({"eval_temperature": 0.8, "temperature": 0.8, "top_p": 0.9}, None, 4),
        ({"top_p": 0.9}, {"temperature": 0.6, "top_p": 0.9}, 4),
    ],
)
def test_evaluations_have_their_own_temperature(
    tmp_path: Path, given: dict[str, Any], sampling: dict[str, float] | None, each: int
) -> None:
    imported = read(tmp_path, options(eval_dataset="heldout.jsonl", **given))
    config = loaded(tmp_path, imported).evaluation
    assert config.sampling == (None if sampling is None else EvaluationSampling(**sampling))
    assert config.responses_per_prompt == each
    assert not [one.about for one in imported.remarks if one.about.startswith("eval_")]


def test_a_file_with_a_reward_function(tmp_path: Path) -> None:
    reward = loaded(tmp_path, read(tmp_path, options(remote_rm_url="rewards/math.py", label_key="answer"))).reward
    assert reward.type == "function" and (reward.path, reward.name) == ("rewards/math.py", "reward_func")
    assert (reward.protocol, reward.label) == ("openrlhf", "answer")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (OLD, ("truncated", 2.0)),
        ({**OLD, "use_icepop": True}, ("icepop", 5.0)),
        ({**OLD, "vllm_is_correction_type": "seq-mask-tis"}, ("reject", 5.0)),
        (
            {LEVEL: "token", MODE: "clip"},
            ("truncated", 5.0),
        ),
        ({LEVEL: "seq"}, ("reject", 5.0)),
        ({}, ("none", None)),
    ],
)
def test_corrections_of_what_the_engines_sampled(tmp_path: Path, given: dict[str, Any], expected: Any) -> None:
    importance = loaded(tmp_path, read(tmp_path, options(**given))).ppo.policy.importance.model_dump()
    assert (importance["type"], importance.get("cap", importance.get("high"))) == expected


def test_engines_share_cards_only_where_theirs_do(tmp_path: Path) -> None:
    def gpus(**given: Any) -> int:
        return len(layout(loaded(tmp_path, read(tmp_path, options(**given)))).gpus)

    assert gpus(colocate_all_models=True) == 8
    assert gpus(colocate_all_models=True, async_train=True) == 16
    assert gpus(colocate_actor_ref=True, colocate_critic_reward=True) == 8 + 8 + 8
    assert gpus() == 5 * 8


def test_a_variable_of_the_shell_is_named(tmp_path: Path) -> None:
    script = "python -m openrlhf.cli.train_ppo_ray --rollout_batch_size 8 --train_batch_size $SIZE\n"
    with pytest.raises(ConfigError, match=r"train_batch_size=\$SIZE is not a positive whole number"):
        read(tmp_path, script)


def test_values_that_allow_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no run can be made of these options: ppo.advantage.gamma=3"):
        read(tmp_path, options(gamma=3))


TABLE = option_table("openrlhf").options
CHANGED: dict[str, Any] = {
    "algo.advantage.estimator": "reinforce",
    "algo.advantage.is_correction_level": "token",
    "algo.kl.estimator": "k2",
    "actor.policy_loss_type": "gspo",
    "actor.loss_agg_mode": "seq-mean-token-mean",
    "data.prompt_probs": "1",
    "reward.remote_url": "http://a:1",
    "reward.clip_range": [-3, 3],
    "critic.freezing_steps": 5,
    "ds.zero_stage": 3,
    "ds.param_dtype": "fp16",
    "algo.advantage.gamma": 0.9,
    "algo.advantage.lambd": 0.9,
    "rollout.temperature": 0.5,
    "rollout.top_p": 0.5,
    "actor.dual_clip": 3.0,
    "actor.eps_clip_low_high": [0.1, 0.3],
    "vllm_is_truncated_threshold": [0.6, 3.0],
    "reward.stop_properly_penalty_coef": -0.5,
}


def changed(option: Option) -> Any:
    """A value that is not the default."""
    default = option.default
    if option.name in CHANGED:
        return CHANGED[option.name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, list):
        return [value * 0.9 for value in default]
    if option.text:
        return "other"
    if isinstance(default, float):
        return default * 0.5 if 0 < default < 10 else 0.5
    return 2 * max(default or 1, 1)


def keys_alone(imported: Imported) -> list[str]:
    """The lines without their remarks."""
    lines = (line.partition("#")[0].rstrip() for line in imported.text.splitlines())
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return keys_alone(read(tmp_path_factory.mktemp("plain"), options()))


@pytest.mark.parametrize("name", TABLE)
def test_every_option_of_their_parser_is_carried_or_spoken_of(tmp_path: Path, plain: list[str], name: str) -> None:
    option = TABLE[name]
    assert sum(map(bool, (option.keys, option.by, option.moot, option.missing))) == 1
    imported = read(tmp_path, options(**{name: changed(option)}))
    about = {remark.about: remark.kind for remark in imported.remarks}
    assert keys_alone(imported) != plain or name in about
    if option.moot or option.missing:
        assert about[name] == ("means nothing here" if option.moot else "missing here")


WIDTHS = {name: [1, 2, 4, 8] for name in TABLE if name.endswith("_per_node") or "tensor_parallel" in name}
VALUES: dict[str, list[Any]] = {
    **WIDTHS,
    "ds.zero_stage": [0, 1, 2, 3],
    "algo.advantage.gamma": [0, 0.5, 1],
    "algo.advantage.lambd": [0, 0.5, 1],
    "algo.advantage.estimator": ["gae", "reinforce", "rloo", "reinforce_baseline", "group_norm", "dr_grpo"],
    "actor.lr_scheduler": ["constant", "linear", "cosine", "polynomial"],
    "vllm_is_correction_type": ["tis", "icepop", "seq-mask-tis"],
    "rollout.batch_size": [64, 1000, 1024],
    "reward.remote_url": ["http://a:1", "reward.py", "http://a:1, http://b:2"],
    "data.prompt_dataset": ["a.jsonl", "a.jsonl,b.jsonl"],
    "data.prompt_probs": ["0.3,0.7"],
}


def values(option: Option) -> st.SearchStrategy[Any]:
    """Values that a user may give."""
    if option.name in VALUES:
        return st.sampled_from(VALUES[option.name])
    if isinstance(option.default, bool):
        return st.booleans()
    if isinstance(option.default, int) and option.name not in CHANGED:
        return st.integers(1, 16)
    return st.sampled_from([value for value in (option.default, changed(option)) if value is not None])


GIVEN = st.fixed_dictionaries({}, optional={name: values(option) for name, option in TABLE.items()})
REFUSED_THERE = r"compares the responses|more than the \d+ samples|vllm_(num_engines|tensor_parallel_size)| shares for "
"""What OpenRLHF refuses too: one response to a prompt, fewer samples than ranks, engines that do not fill the cards."""


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(GIVEN)
def test_what_is_written_always_loads(tmp_path_factory: pytest.TempPathFactory, given: dict[str, Any]) -> None:
    path = tmp_path_factory.mktemp("any") / "x.yaml"
    path.write_text(yaml.safe_dump({"actor.num_nodes": 1, **given}))
    try:
        text = import_openrlhf(path).text
    except ConfigError as error:
        assert re.search(REFUSED_THERE, str(error)), error
    else:
        assert validate(parse_yaml(text))


def test_pretraining_data_becomes_the_pre_training_loss(tmp_path: Path) -> None:
    said = {"train_batch_size": 64, "rollout_batch_size": 128, "prompt_max_len": 300, "generate_max_len": 200}
    imported = read(
        tmp_path, options(**said, pretrain_data="a/b,c/d", pretrain_data_probs="0.25,0.75", input_key="body")
    )
    ptx = loaded(tmp_path, imported).ppo.ptx
    assert ptx is not None and (ptx.coefficient, ptx.sequences_per_mini_batch, ptx.max_tokens) == (0.05, 64, 500)
    sources = list(ptx.data.sources.values())
    assert [(one.path, one.split, one.columns, one.weight) for one in sources] == [
        ("a/b", "train", {"text": "body"}, 0.25),
        ("c/d", "train", {"text": "body"}, 0.75),
    ]
    assert ptx.too_long == "truncate"
    given = loaded(tmp_path, read(tmp_path, options(**said, pretrain_data="a/b", ptx_coef=2.5))).ppo.ptx
    assert given is not None and (given.coefficient, given.data.columns) == (2.5, {"text": "input"})
    for without in ({"ptx_coef": 0.1}, {"pretrain_data": "a/b", "ptx_coef": 0.0}):
        imported = read(tmp_path, options(**said, **without))
        assert loaded(tmp_path, imported).ppo.ptx is None
        assert any(next(iter(without)) in line for line in imported.about("means nothing here"))
