"""verl's overrides, in scripts with variables, become a configuration that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.config.evaluation import EvaluationSampling
from orchestrator.config.loading import load_config, validate
from orchestrator.config.run import RunConfig
from orchestrator.config.yaml_text import parse_yaml
from orchestrator.errors import ConfigError
from orchestrator.importing.importer import Imported
from orchestrator.importing.option_table import Option, option_table
from orchestrator.importing.verl import import_verl
from orchestrator.planning.layout_planner import layout

SCRIPT = """\
set -x
math=$HOME/data/math/train.parquet
gsm8k=$HOME/data/gsm8k/train.parquet
train_files="['$gsm8k', '$math']"
TOKENS=${TOKENS:-1024}

python3 -m verl.trainer.main_ppo \\
    algorithm.adv_estimator=gae \\
    data.train_files="$train_files" \\
    data.val_files=$HOME/data/gsm8k/test.parquet \\
    data.train_batch_size=1024 \\
    data.max_prompt_length=$TOKENS \\
    data.max_response_length=$((TOKENS / 2)) \\
    data.filter_overlong_prompts=True \\
    actor_rollout_ref.model.path=meta-llama/Meta-Llama-3-8B-Instruct \\
    actor_rollout_ref.model.use_remove_padding=True \\
    actor_rollout_ref.actor.optim.lr=1e-6 \\
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1 \\
    actor_rollout_ref.actor.ppo_mini_batch_size=256 \\
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=16 \\
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=True \\
    actor_rollout_ref.actor.use_kl_loss=True \\
    actor_rollout_ref.actor.kl_loss_coef=0.002 \\
    actor_rollout_ref.actor.kl_loss_type=low_var_kl \\
    actor_rollout_ref.rollout.tensor_model_parallel_size=4 \\
    actor_rollout_ref.rollout.name=vllm \\
    actor_rollout_ref.rollout.n=2 \\
    actor_rollout_ref.rollout.gpu_memory_utilization=0.4 \\
    critic.optim.lr=1e-5 \\
    critic.model.path=meta-llama/Meta-Llama-3-8B-Instruct \\
    reward_model.enable=True \\
    reward_model.model.path=OpenRLHF/Llama-3-8b-rm-mixture \\
    +actor_rollout_ref.actor.new_key=3 \\
    trainer.critic_warmup=2 \\
    trainer.logger=['console','wandb'] \\
    trainer.project_name='mine' trainer.experiment_name='first' \\
    trainer.n_gpus_per_node=8 trainer.nnodes=1 trainer.save_freq=20 trainer.test_freq=5 \\
    trainer.total_training_steps=100 $@
"""


def read(tmp_path: Path, text: str) -> Imported:
    path = tmp_path / "x"
    path.write_text(text)
    return import_verl(path)


def loaded(tmp_path: Path, imported: Imported) -> RunConfig:
    ours = tmp_path / "ours.yaml"
    ours.write_text(imported.text)
    return load_config(ours)


def words(**given: Any) -> str:
    return "python3 -m verl.trainer.main_ppo " + " ".join(
        f"{name}={value}".replace(", ", ",") for name, value in given.items()
    )


def test_a_script(tmp_path: Path) -> None:
    imported = read(tmp_path, SCRIPT)
    assert imported.about("to be set") == []
    assert imported.about("missing here") == ["actor_rollout_ref.actor.new_key"]
    assert "actor_rollout_ref.rollout.name" in imported.about("means nothing here")
    config = loaded(tmp_path, imported)
    sources = [source.path for source in config.prompts.train.sources.values()]
    assert sources == [str(Path.home() / f"data/{name}/train.parquet") for name in ("gsm8k", "math")]
    assert config.prompts.heldout is not None and config.evaluation.every == 5
    assert (config.prompts.max_tokens, config.rollout.max_response_tokens) == (1024, 512)
    assert config.prompts.too_long == "skip" and config.prompts.column == "prompt"
    assert (config.steps, config.ppo.mini_batches, config.critic.warmup.max_steps) == (100, 4, 2)
    schedule = config.actor.optimizer.schedule
    assert (schedule.type, schedule.warmup_steps) == ("constant", 40)  # 10 % of (100 - 2) x 4
    assert (config.ppo.kl.where, config.ppo.kl.estimator) == ("loss", "k3")
    assert config.ppo.kl.controller.model_dump() == {"type": "fixed", "coefficient": 0.002}
    assert config.actor.zero.sleep and not config.critic.zero.sleep and config.critic.initialise_from == "policy"
    assert config.reward.type == "model" and config.reward.text_bridge
    assert config.run_dir == "checkpoints/mine/first" and config.checkpoint.every == 20
    assert len(layout(config).gpus) == 8


def test_their_defaults_are_written_out_where_ours_differ(tmp_path: Path) -> None:
    config = loaded(tmp_path, read(tmp_path, words(**{"trainer.total_training_steps": 10})))
    advantage, policy, optimizer = config.ppo.advantage, config.ppo.policy, config.actor.optimizer
    assert advantage.type == "gae" and advantage.lambda_ == 1
    assert (policy.clip, policy.clip_high, policy.dual_clip) == (0.2, None, 3.0)
    assert (config.ppo.epochs, config.ppo.value.clip, config.ppo.value.coefficient) == (1, 0.5, 1.0)
    assert (optimizer.betas, optimizer.weight_decay, optimizer.epsilon) == ((0.9, 0.999), 0.01, 1e-8)
    assert optimizer.schedule.type == "constant" and config.actor.gradient_checkpointing
    assert config.ppo.kl.controller.model_dump() == {"type": "fixed", "coefficient": 0.0}
    assert config.rollout.engine.gpu_memory_utilization == 0.5 and config.rollout.engine.sleep == 1


@pytest.mark.parametrize(
    ("given", "kind", "about"),
    [
        ({"algorithm.adv_estimator": "opo"}, "different here", "adv_estimator"),
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "clip_cov"}, "different here", "loss_mode"),
        ({"actor_rollout_ref.actor.loss_agg_mode": "seq-mean-token-sum"}, "different here", "loss_agg_mode"),
        ({"actor_rollout_ref.rollout.name": "sglang"}, "different here", "rollout.name"),
        ({"actor_rollout_ref.rollout.top_p": 0.9}, "different here", "top_p"),
        ({"algorithm.filter_groups.enable": True}, "missing here", "filter_groups"),
        ({"algorithm.filter_groups.metric": "acc"}, "missing here", "filter_groups.metric"),
        ({"reward.custom_reward_function.path": "r.py"}, "to be set", "reward.path"),
        ({"algorithm.rollout_correction.rollout_is": "sequence"}, "different here", "rollout_is"),
        ({"algorithm.adv_estimator": "reinforce_plus_plus", "critic.optim.lr": 1e-4}, "means nothing", "optim.lr"),
        ({"something.else": 1}, "missing here", "something.else"),
    ],
)
def test_what_is_lost_is_named(tmp_path: Path, given: dict[str, Any], kind: str, about: str) -> None:
    imported = read(tmp_path, words(**{"trainer.total_training_steps": 10, **given}))
    assert any(remark.kind.startswith(kind) and about in remark.about for remark in imported.remarks), imported.remarks


def test_corrections(tmp_path: Path) -> None:
    name = "algorithm.rollout_correction.rollout_is"

    def importance(threshold: Any) -> dict[str, Any]:
        given = {name: "token", f"{name}_threshold": threshold}
        return loaded(tmp_path, read(tmp_path, words(**given))).ppo.policy.importance.model_dump()

    assert importance(3.0) == {"type": "truncated", "cap": 3.0}
    assert importance("0.5_4.0") == {"type": "icepop", "low": 0.5, "high": 4.0}


def test_the_engines_log_probabilities_may_stand_for_the_actors(tmp_path: Path) -> None:
    given = {"algorithm.rollout_correction.bypass_mode": True}
    assert loaded(tmp_path, read(tmp_path, words(**given))).actor.old_logprobs == "rollout"
    weighted = {**given, "algorithm.rollout_correction.rollout_is": "token"}
    imported = read(tmp_path, words(**weighted))
    assert loaded(tmp_path, imported).ppo.policy.importance.type == "none"
    assert any("rollout_is" in remark.about for remark in imported.remarks)
    plain = words(**{"trainer.total_training_steps": 10})
    assert loaded(tmp_path, read(tmp_path, plain)).actor.old_logprobs == "recompute"


def test_gspo_is_a_mean_of_responses_whatever_the_losses_mean_is(tmp_path: Path) -> None:
    mode, mean = "actor_rollout_ref.actor.policy_loss.loss_mode", "actor_rollout_ref.actor.loss_agg_mode"
    clip = {"actor_rollout_ref.actor.clip_ratio": 3e-4}
    for more in ({}, {mean: "seq-mean-token-sum"}):
        imported = read(tmp_path, words(**clip, **{mode: "gspo"}, **more))
        assert loaded(tmp_path, imported).ppo.policy.mean == "sequence"
    assert loaded(tmp_path, read(tmp_path, words(**clip))).ppo.policy.mean == "token"


@pytest.mark.parametrize(
    ("low", "high", "plain", "bounds"),
    [
        (0.2, 0.28, None, (0.2, 0.28)),
        (0.3, 0.3, None, (0.3, None)),
        (None, 0.28, None, (0.2, 0.28)),
        (0.1, "null", 0.3, (0.1, 0.3)),
        (None, None, 0.3, (0.3, None)),
    ],
)
def test_bounds_of_the_ratio_that_hold_are_not_called_without_effect(
    tmp_path: Path, low: float | None, high: float | str | None, plain: float | None, bounds: tuple[float, float | None]
) -> None:
    said = {"_low": low, "_high": high, "": plain}
    given = {f"actor_rollout_ref.actor.clip_ratio{end}": value for end, value in said.items() if value is not None}
    imported = read(tmp_path, words(**given))
    policy = loaded(tmp_path, imported).ppo.policy
    assert (policy.clip, policy.clip_high) == bounds
    assert (imported.about("means nothing here") == []) == (high != "null")
    assert any("clip_ratio" in about for about in imported.about("different here")) == (plain is not None and not low)


@pytest.mark.parametrize(
    ("given", "estimator"),
    [("k1+", "k2"), ("kl+", "k2"), ("abs+", "k2"), ("low_var_kl+", "k2"), ("k3+", "k2"), ("k3", "k3")],
)
def test_a_plus_is_the_gradient_of_k2_in_the_loss_and_nothing_in_the_reward(
    tmp_path: Path, given: str, estimator: str
) -> None:
    loss = {"actor_rollout_ref.actor.use_kl_loss": True, "actor_rollout_ref.actor.kl_loss_type": given}
    imported = read(tmp_path, words(**loss))
    kl = loaded(tmp_path, imported).ppo.kl
    assert (kl.where, kl.estimator, kl.allow_biased) == ("loss", estimator, False)
    assert not any("kl_loss_type" in remark.about for remark in imported.remarks)
    if given.startswith("k"):
        reward = {"algorithm.use_kl_in_reward": True, "algorithm.kl_penalty": given}
        plain = {"algorithm.use_kl_in_reward": True, "algorithm.kl_penalty": given.removesuffix("+")}
        kls = [loaded(tmp_path, read(tmp_path, words(**said))).ppo.kl for said in (reward, plain)]
        assert kls[0] == kls[1]


def test_a_kl_penalty_of_0_that_would_adapt_stays_0(tmp_path: Path) -> None:
    given = {"algorithm.use_kl_in_reward": True, "algorithm.kl_ctrl.type": "adaptive", "algorithm.kl_ctrl.kl_coef": 0}
    config = loaded(tmp_path, read(tmp_path, words(**given)))
    assert config.ppo.kl.controller.model_dump() == {"type": "fixed", "coefficient": 0.0}


def test_a_configuration_file_of_verls(tmp_path: Path) -> None:
    text = "data: {train_batch_size: 64}\nactor_rollout_ref: {actor: {ppo_mini_batch_size: 16}}\ntrainer: {nnodes: 2}\n"
    config = loaded(tmp_path, read(tmp_path, text))
    assert (config.rollout.prompts_per_step, config.ppo.mini_batches) == (64, 4)
    with pytest.raises(ConfigError, match="holds no option of verl"):
        read(tmp_path, "python3 -m another.program a=1\n")


TABLE = option_table("verl").options
VALUES: dict[str, list[Any]] = {
    "algorithm.adv_estimator": ["gae", "reinforce_plus_plus", "opo"],
    "algorithm.kl_penalty": ["kl", "mse", "low_var_kl", "abs"],
    "algorithm.kl_ctrl.type": ["fixed", "adaptive"],
    "data.truncation": ["error", "left", "right"],
    "actor_rollout_ref.actor.loss_agg_mode": ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum-norm"],
    "critic.loss_agg_mode": ["token-mean", "seq-mean-token-mean"],
    "actor_rollout_ref.actor.policy_loss.loss_mode": ["vanilla", "gspo", "cispo"],
    "actor_rollout_ref.rollout.tensor_model_parallel_size": [1, 2, 4],
    "trainer.n_gpus_per_node": [4, 8],
    "data.train_batch_size": [512, 1000],
    "trainer.logger": [["console"]],
}


def values(option: Option) -> st.SearchStrategy[Any]:
    if option.name in VALUES:
        return st.sampled_from(VALUES[option.name])
    if isinstance(option.default, bool):
        return st.booleans()
    if isinstance(option.default, int) and option.name not in ("algorithm.gamma", "actor_rollout_ref.rollout.top_p"):
        return st.integers(1, 16)
    return st.just(option.default)


GIVEN = st.fixed_dictionaries({}, optional={n: values(o) for n, o in TABLE.items() if "*" not in n and o.default})


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(GIVEN)
def test_what_is_written_always_loads(tmp_path_factory: pytest.TempPathFactory, given: dict[str, Any]) -> None:
    text = read(tmp_path_factory.mktemp("any"), words(**{"trainer.nnodes": 1, **given})).text
    assert validate(parse_yaml(text))


@pytest.mark.parametrize(("most", "rounds"), [(None, 4), (0, 4), (1, 2), (10, 10)])
def test_filtered_groups_are_dynamic_sampling(tmp_path: Path, most: int | None, rounds: int) -> None:
    given = {"algorithm.filter_groups.enable": True, "actor_rollout_ref.rollout.n": 8}
    more = {} if most is None else {"algorithm.filter_groups.max_num_gen_batches": most}
    imported = read(tmp_path, words(**given, **more))
    sampling = loaded(tmp_path, imported).ppo.dynamic_sampling
    assert sampling is not None and sampling.rounds == rounds
    assert imported.about("missing here") == [] and "algorithm.filter_groups.enable" in imported.about("different here")


def test_filtered_groups_are_missing_with_remax(tmp_path: Path) -> None:
    given = {"algorithm.adv_estimator": "remax", "actor_rollout_ref.rollout.n": 8}
    imported = read(tmp_path, words(**given, **{"algorithm.filter_groups.enable": True}))
    assert loaded(tmp_path, imported).ppo.dynamic_sampling is None
    assert imported.about("missing here") == ["algorithm.filter_groups.enable"]


OWN = "actor_rollout_ref.rollout.val_kwargs"


@pytest.mark.parametrize(
    ("given", "sampling", "each", "moot"),
    [
        ({}, {"temperature": 0}, 1, []),
        ({"temperature": 0.6, "do_sample": True, "n": 16, "top_p": 0.7}, {"temperature": 0.6, "top_p": 0.7}, 16, []),
        ({"temperature": 0.6, "top_k": 20}, {"temperature": 0.6, "top_k": 20}, 1, []),
        ({"temperature": 1.0, "do_sample": True, "n": 4}, None, 4, []),
        ({"temperature": 0.6, "do_sample": False, "n": 4}, {"temperature": 0}, 1, [f"{OWN}.n"]),
    ],
)
def test_validation_has_its_own_sampling(
    tmp_path: Path, given: dict[str, Any], sampling: dict[str, float] | None, each: int, moot: list[str]
) -> None:
    """Greedy by default; as in training, none is needed, and the KL can be told."""
    named = {f"{OWN}.{name}": value for name, value in given.items()}
    own = {"data.train_files": "train.parquet", "data.val_files": "val.parquet", "actor_rollout_ref.model.path": "m"}
    imported = read(tmp_path, words(**own, **named))
    config = loaded(tmp_path, imported).evaluation
    assert config.sampling == (None if sampling is None else EvaluationSampling(**sampling))
    assert config.responses_per_prompt == each
    assert config.prompts is None and "  prompts: null  # all of them, as in verl" in imported.text
    assert [
        name for kind in ("missing here", "means nothing here") for name in imported.about(kind) if OWN in name
    ] == moot


def test_without_validation_its_sampling_says_nothing(tmp_path: Path) -> None:
    imported = read(tmp_path, words(**{"actor_rollout_ref.model.path": "m", f"{OWN}.temperature": 0.6}))
    assert loaded(tmp_path, imported).evaluation.sampling is None
    assert f"{OWN}.temperature" in imported.about("means nothing here")
