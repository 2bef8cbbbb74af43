"""Mistakes in configuration files: what each is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.loading import validate
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import all_keys
from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.errors import ConfigError
from tests.unit.orchestrator.config.files import ENVIRONMENT, MINIMAL, REMOTE, problem

RETRAIN = "retraining={every: 2, judge: {type: function, path: judge.py}, prompts: 4, pinned: 4}"
DYNAMIC = "ppo.dynamic_sampling={}"
DOUBLED = f"[&a0 [x, x], {', '.join(f'&a{i} [*a{i - 1}, *a{i - 1}]' for i in range(1, 30))}]"
"""With its aliases written out it would have more than a thousand million values."""


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["ppo.epoch=2"], ["ppo.epoch: unknown key", "did you mean `epochs`?"]),
        (["reward.model.paht=x"], ["reward.model.paht: unknown key", "`path`"]),
        (["rewad.type=model"], ["rewad: unknown key", "`reward`"]),
        (["learning_rate=1e-5"], ["learning_rate: unknown key", "`actor.optimizer.learning_rate`"]),
        (["report.zzzz=1"], ["report.zzzz: unknown key", "known here: tensorboard, html"]),
        (["reward.urls=[a]"], ["reward.urls: a key of type remote, but reward.type is model"]),
        (["reward.type=modle"], ['reward.type="modle"', "model, function, remote", "did you mean `model`?"]),
        (["reward={path: f.py}"], ["reward.type: missing", "model, function, remote"]),
        (["ppo.epochs=0"], ["ppo.epochs=0", "at least 1"]),
        (["ppo.epochs=1.5"], ["ppo.epochs=1.5", "whole number"]),
        (["ppo.epochs=four"], ['ppo.epochs="four"', "whole number"]),
        (["steps=true"], ["steps=true", "must be a number"]),
        (["actor.optimizer.betas=[false, 0.5]"], ["actor.optimizer.betas[0]=false", "must be a number"]),
        (["actor.optimizer.betas=[0.5]"], ["actor.optimizer.betas[1]: missing"]),
        (["actor.optimizer.learning_rate=2"], ["actor.optimizer.learning_rate=2", "less than 1"]),
        (["actor.optimizer.weight_decay=.inf"], ["actor.optimizer.weight_decay", "finite"]),
        (["ppo.advantage.lambda=1.5"], ["ppo.advantage.lambda=1.5", "at most 1"]),
        (["rollout.temperature=0"], ["rollout.temperature=0", "at least 0.01"]),
        (["device=gpu"], ['device="gpu"', "one of cpu, cuda"]),
        (["dtype=bflot16"], ['dtype="bflot16"', "did you mean `bfloat16`?"]),
        (["run_dir=2024"], ["run_dir=2024", "must be text", "quotes"]),
        (["run_dir=''"], ['run_dir=""', "must not be empty"]),
        (["run_dir="], ["run_dir=null", "must be text"]),
        (["ppo=3"], ["ppo=3", "mapping"]),
        (["reward={type: remote, urls: []}"], ["reward.urls=[]", "must not be empty"]),
        (["reward={type: remote, urls: [ftp://h]}"], ['reward.urls[0]="ftp://h"', "https?://"]),
        (["reward={type: remote, urls: ['http://h:x']}"], ['reward.urls[0]="http://h:x"', "http://host:8000/score"]),
        (["device=gpu"], ["did you mean `cuda`?"]),
        (["dtype=bf16"], ["did you mean `bfloat16`?"]),
        (["ppo.kl.coefficient=1"], ["ppo.kl.coefficient: unknown key; did you mean `ppo.kl.controller.coefficient`?"]),
        (["ppo.kl.coeficient=1"], ["did you mean `ppo.kl.controller.coefficient`?"]),
        (["actor.learning_rate=1"], ["did you mean `actor.optimizer.learning_rate`?"]),
        (["critic.optimizer.warmup_steps=1"], ["did you mean `critic.optimizer.schedule.warmup_steps`?"]),
        (["ppo.policy.gamma=1"], ["did you mean `ppo.advantage.gamma`?"]),
        (["evaluation.heldout=1"], ["did you mean `prompts.heldout`?"]),
        (["run_dir=" + "a" * 300], ["run_dir=", "at most 255 bytes in each name and 4000 in all"]),
        (["actor.model.path=" + "/a" * 3000], ["actor.model.path=", "at most 255 bytes in each name and 4000 in all"]),
        (['prompts.train.path="a\\0b"'], ["override of prompts.train.path", "a text holds a NUL character"]),
        (["steps"], ["override `steps`", "key.path=value"]),
        (["ppo..epochs=1"], ["override `ppo..epochs`", "key.path=value"]),
        (["steps.x=1"], ["steps is not a mapping"]),
        (["steps=[1"], ["override of steps", "not YAML"]),
        (["steps=" + "1" * 5000], ["override of steps", "line 1: an integer of 5000 characters is too long"]),
        (["steps=0x" + "f" * 5000], ["override of steps", "an integer of 5002 characters is too long"]),
        (["steps=!!int abc"], ["override of steps", "line 1: the value cannot be read as int"]),
        (["steps=!!float abc"], ["the value cannot be read as float"]),
        (["steps=!!bool maybe"], ["the value cannot be read as bool"]),
        (["steps=!!timestamp x"], ["the value cannot be read as timestamp"]),
        (["steps=" + "[" * 1000 + "]" * 1000], ["override of steps", "nested too deeply"]),
        (["steps=" + "{a: " * 1000 + "}" * 1000], ["override of steps", "nested too deeply"]),
        (["steps=\0"], ["override of steps", "character 1", "special characters are not allowed"]),
        (['run_dir="\\ud800"'], ['run_dir="\\ud800"', "whole characters"]),
        (["ppo={1: 2}"], ["ppo[1]", "keys must be text"]),
        ([f"device={DOUBLED}"], ["override of device", "more than 100000 values"]),
        (["steps=&a [*a]"], ["steps: a list", "whole number"]),
        (["rollout={max_response_tokens: 4}"], ["rollout.prompts_per_step: missing", "Prompts of one PPO step"]),
    ],
)
def test_a_mistake_names_key_value_and_fix(file: Path, overrides: list[str], parts: list[str]) -> None:
    message = problem(file, *overrides)
    assert [part for part in parts if part not in message] == [], message
    assert "pydantic" not in message and "Input should" not in message
    assert len(message.splitlines()) == 1


def test_several_mistakes_are_one_line_each(file: Path) -> None:
    heading, *lines = problem(file, "ppo.epoch=2", "ppo.epochs=0", "device=gpu").splitlines()
    assert "3 problems" in heading and str(file) in heading
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["ppo.mini_batches=3"], ["ppo.mini_batches=3", "8 samples", "use 2 or 4"]),
        (["ppo.mini_batches=4", "placement.critic.ranks=3"], ["placement.critic.ranks=3", "2 samples of a mini-batch"]),
        (["placement.actor.ranks=9"], ["placement.actor.ranks=9", "8 samples"]),
        (["rollout.min_response_tokens=17"], ["rollout.min_response_tokens=17", "max_response_tokens=16"]),
        (["rollout.top_p=0.9"], ["rollout.top_p=0.9", "type: truncated"]),
        (["rollout.min_p=0.1"], ["min_p=0.1", "type: truncated"]),
        (
            ["actor.old_logprobs=rollout", "rollout.top_p=0.9", "ppo.policy.importance={type: truncated}"],
            ["of another distribution than the actor's", "nothing to correct", "use type: none, or recompute"],
        ),
        (["actor.old_logprobs=first_pass"], ["needs an update of one optimizer step", "use recompute or rollout"]),
        (["rollout.top_k=5", "ppo.policy.importance={type: reject}"], ["top_k=5", "type: truncated"]),
        (["critic.warmup.max_steps=10"], ["critic.warmup.max_steps=10", "steps=10"]),
        (["actor.optimizer.schedule.warmup_steps=40"], ["actor.optimizer.schedule.warmup_steps=40", "40 optimizer"]),
        (
            ["reward={type: function, path: f.py}"],
            ["critic.model is null", "reward.type=function", "critic.model.path"],
        ),
        (["ppo.advantage={type: grpo}"], ["ppo.advantage.type=grpo", "responses_per_prompt=1", "4 or more"]),
        (
            ["ppo.advantage={type: reinforce++}", "critic.warmup.max_steps=1", "ppo.value.clip=null"],
            ["critic needs a critic", "ppo.value needs a critic", "use type: gae"],
        ),
        (
            ["ppo.advantage={type: reinforce++}", "ppo.truncated={type: bootstrap}"],
            ["ppo.truncated.type=bootstrap needs a critic"],
        ),
        (
            ["ppo.score.length={type: soft_overlong, longest: 64, buffer: 8}"],
            ["longest=64", "max_response_tokens=16", "longest: 16"],
        ),
        (
            ["ppo.kl.budget.warn=null", "alerts.kl.on_alert=stop"],
            ["alerts.kl.on_alert=stop", "ppo.kl.budget.warn", "alerts.kl=null"],
        ),
        (["ppo.kl.where=loss"], ["{where: loss, estimator: k1}", "nothing holds the policy", "allow_biased: true"]),
        (["ppo.kl.estimator=k3"], ["{where: reward, estimator: k3}", "use k1"]),
        (["ppo.policy={type: gspo, clip: 1e-3, dual_clip: 3}"], ["ppo.policy.dual_clip=3", "type: gspo"]),
        (["ppo.policy={type: gspo}"], ["ppo.policy.clip=0.2 clips nothing", "clip: 3.0e-4"]),
        (
            ["reward={type: environment}", "critic.model={path: x}"],
            ["reward.type=environment", "section `environment`"],
        ),
        ([f"environment={ENVIRONMENT}", "environment.max_tokens=79"], ["environment.max_tokens=79", "use 80 or more"]),
        ([f"environment={ENVIRONMENT}", "reward.text_bridge=true"], ["reward.text_bridge", "actor's tokenizer"]),
        (
            [f"environment={ENVIRONMENT}", "prompts.column=prompt", "prompts.too_long=skip"],
            ["prompts.column=prompt is not read", "prompts.too_long=skip is not read"],
        ),
        (
            [
                f"environment={ENVIRONMENT}",
                "environment.max_turns=3",
                "ppo.score.length={type: soft_overlong, longest: 49, buffer: 8}",
            ],
            ["longest=49", "longest response, 48 tokens"],
        ),
        (["reference.share_actor=true"], ["reference.share_actor=true needs actor.lora", "{rank: 16}"]),
        (
            ["actor.lora.rank=4", "reference={share_actor: true, micro_batch_tokens: 8}"],
            ["reference.share_actor=true takes the actor's", "remove the other keys"],
        ),
        (["actor={model: {path: p}, lora: {rank: 4}, ema_decay: 0.9}"], ["actor.ema_decay=0.9", "actor.lora"]),
        (["reward={type: ensemble, members: {}}"], ["reward.members", "must not be empty"]),
        (
            ["reward={type: ensemble, members: {a: {type: model, model: {path: r}}}}"],
            ["critic.model is null", "has several"],
        ),
        (
            [
                "reward={type: ensemble, members: {a: {type: function, path: f.py}}, combine: {type: weighted, "
                "weights: {b: 1}}}",
                "critic.initialise_from=policy",
            ],
            ["no weight for the member 'a'; give it one", "a weight for 'b', which is no member; use a"],
        ),
        (["ppo.value.normalise=true"], ["ppo.value.normalise=true", "speaks in scores", "initialise_from: policy"]),
        (["critic={model: {path: r}, initialise_from: policy}"], ["initialise_from=policy", "critic.model.path"]),
        (
            ["critic.warmup.until_explained_variance=0.4"],
            ["explained_variance=0.4", "set critic.warmup.max_steps"],
        ),
        (["ppo.advantage={type: remax}", "ppo.whiten_rewards=true"], ["whiten_rewards=true", "remax"]),
        (["ppo.advantage={type: gae, lambda: 1.5}"], ["ppo.advantage.lambda=1.5"]),
        (["ppo.kl.controller={type: adaptive, target: 6, initial: 0}"], ["ppo.kl.controller.initial=0"]),
        (["ppo.kl.budget.stop=-1"], ["ppo.kl.budget.stop=-1"]),
        (["evaluation.every=5"], ["evaluation.every=5", "prompts.heldout.path"]),
        (["prompts.heldout_sets={a: {path: a}, b: {path: b}}"], ["has a, b: say with evaluation.decides"]),
        (["prompts.heldout_sets={heldout: {path: a}}"], ["heldout_sets.heldout: the set in prompts.heldout is told"]),
        (
            ["prompts.heldout_sets={a: {path: a}}", "evaluation.decides=c"],
            ["evaluation.decides=c", "use one of a, or null"],
        ),
        (["evaluation.sampling={temperature: 0.001}"], ["evaluation.sampling.temperature=0.001", "0.01"]),
        (
            ["evaluation={sampling: {temperature: 0}, responses_per_prompt: 4}"],
            ["evaluation.sampling.temperature=0", "evaluation.responses_per_prompt=4"],
        ),
        (["checkpoint.keep_best=2"], ["checkpoint.keep_best=2", "evaluation.every=0", "prompts.heldout.path"]),
        (["evaluation.judge={path: f.py}"], ["evaluation.judge", "prompts.heldout.path"]),
        (
            ["evaluation.stop={}"],
            ["evaluation.stop", "no evaluation.judge", "evaluation.every=0", "prompts.heldout.path"],
        ),
        (["evaluation.stop={on: proxy}"], ["evaluation.stop.on", "gold"]),
        (["evaluation.stop={patience: 0}"], ["evaluation.stop.patience=0"]),
        (["rollout.engine.sleep=1"], ["rollout.engine.sleep=1", "device=cpu"]),
        ([DYNAMIC, "device=cuda", "rollout.engine.sleep=2"], ["ppo.dynamic_sampling", "use sleep: 1"]),
        (["device=cuda", "rollout.engine.sleep=2", "critic.warmup.max_steps=1"], ["sleep=2", "use sleep: 1"]),
        (["rollout.engine.block_size=16"], ["rollout.engine.block_size=16", "multiple of 32", "use 32"]),
        (["actor.zero.offload_optimizer=true"], ["actor.zero.offload_optimizer=true", "device=cpu"]),
        (["critic.zero.sleep=true"], ["critic.zero.sleep=true", "device=cpu"]),
        (["device=cuda", "reference.zero.sleep=true"], ["reference.zero.sleep=true", "no optimizer"]),
        (["device=cuda", "actor.zero={stage: 2, sleep: true}"], ["actor.zero.sleep=true", "stage=3"]),
        (["device=cuda", "actor.zero={sleep: true, offload_optimizer: true}"], ["actor.zero.sleep=true", "set one"]),
        (
            [RETRAIN, "reward={type: function, path: r.py}"],
            ["retraining trains the reward model, but reward.type=function"],
        ),
        ([RETRAIN, "reward.text_bridge=true"], ["reward.text_bridge=true", "actor's tokenizer"]),
        ([RETRAIN, "retraining.every=9", "steps=9"], ["retraining.every=9 is never reached", "steps=9"]),
        (
            [RETRAIN, "retraining.every=5", "critic.warmup.max_steps=5"],
            ["retraining.every=5 is never reached", "critic.warmup.max_steps=5", "steps=10"],
        ),
        (
            [RETRAIN, "critic.warmup.max_steps=4", "retraining.optimizer.schedule.warmup_steps=2"],
            ["retraining.optimizer.schedule.warmup_steps=2 is not below the 2 optimizer steps", "retraining.epochs"],
        ),
        ([RETRAIN, "retraining.critic_steps=2"], ["retraining.critic_steps=2", "none of the 2 steps"]),
        ([RETRAIN, "retraining.pinned=9"], ["retraining.pinned=9", "8 responses", "use 8 or fewer"]),
        (
            [RETRAIN, "environment={path: e.py, max_tokens: 99}"],
            ["retraining compares responses, not conversations"],
        ),
        ([RETRAIN, "device=cuda", "rollout.engine.sleep=2"], ["rollout.engine.sleep=2", "critic_steps: 0"]),
        (
            ["device=cuda", "reward.zero={stage: 2, offload_parameters: true}"],
            ["reward.zero.offload_parameters=true", "stage=3, not 2"],
        ),
    ],
)
def test_rules_between_keys(file: Path, overrides: list[str], parts: list[str]) -> None:
    message = problem(file, *overrides)
    assert [part for part in parts if part not in message] == [], message


def test_all_broken_rules_are_told_at_once(file: Path) -> None:
    lines = problem(file, "rollout.top_k=5", "evaluation.every=5", "ppo.mini_batches=5").splitlines()
    assert "3 problems" in lines[0] and len(lines) == 4


def test_no_message_shows_a_secret(file: Path) -> None:
    messages = [
        problem(file, REMOTE, "ppo.epochs=0"),
        problem(file, "reward={type: remote, urls: [ftp://me:tok-123@h], headers: {Authorization: tok-123}}"),
        problem(file, "reward={type: remote, urls: ['http://h'], headers: {Authorization: [tok-123]}}"),
        problem(file, "reward={type: remote, urls: ['http://h'], headers: tok-123}"),
        problem(file, "reward={type: remote, urls: ['http://h'], header: {Authorization: tok-123}}"),
        problem(file, "reward={type: remote, headers: {Authorization: tok-123}"),
    ]
    assert [message for message in messages if "tok-123" in message] == []


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["is empty"]),
        ("- a\n- b", ["holds a list", "mapping"]),
        ("steps: 1\nsteps: 2", ["line 2", "`steps` already stands at line 1"]),
        ("ppo: {epochs: 1, epochs: 2}", ["`epochs` already stands"]),
        ("ppo: {epochs: [1}", ["line 1"]),
        ("a: *nowhere", ["line 1", "nowhere"]),
        ("a:\n\tb: 1", ["line 2, column 1", "indent with spaces"]),
        ('a: "x\nb: 1\n', ["line 3", "quoted scalar that begins at line 1, column 4"]),
        ("1: x", ["1"]),
        ("x: !!python/object:os.system {}", ["line 1"]),
        ("steps: 1\nx: !!int abc", ["line 2", "cannot be read as int"]),
        ("x: " + "[" * 1000 + "]" * 1000, ["nested too deeply"]),
        (f"x: {DOUBLED}", ["with its aliases (*name) written out it has more than 100000 values"]),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str, parts: list[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    message = problem(path)
    assert [part for part in [*parts, str(path)] if part not in message] == [], message


def test_a_file_in_another_encoding_names_the_line(file: Path) -> None:
    file.write_bytes(b"steps: 1\n# caf\xe9\n")
    assert "line 2 is not UTF-8 (byte 0xe9); save it as UTF-8" in problem(file)
    file.write_text("steps: 2\n", encoding="utf-16")
    assert "it is UTF-16; save it as UTF-8, for example with: iconv -f UTF-16 -t UTF-8" in problem(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "does not exist" in problem(tmp_path / "none.yaml")
    assert "is a directory" in problem(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in problem(binary)


def test_an_untyped_member_of_an_ensemble_is_told_its_types() -> None:
    data = {**parse_yaml(MINIMAL), "reward": {"type": "ensemble", "members": {"a": {"path": "f.py"}}}}
    with pytest.raises(ConfigError, match=r"reward\.members\.a\.type: missing; add it: one of model, function, remote"):
        validate(data)


def test_no_text_holds_a_nul() -> None:
    with pytest.raises(YamlError, match="line 2: a text holds a NUL"):
        parse_yaml('a: 1\nrun_dir: "a\\0b"\n')


@pytest.mark.parametrize("key", ["repetition_penalty", "presence_penalty", "frequency_penalty", "bad_words"])
def test_what_would_make_other_log_probabilities_is_refused_with_the_reason(file: Path, key: str) -> None:
    said = problem(file, f"rollout.{key}=1")
    assert f"rollout.{key}: refused: it changes each token's probability by what" in said
    assert "reward function" in said and "did you mean" not in said


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        ("prompts.input_key=x", "prompts.column"),
        ("prompts.train.prompt_key=x", "prompts.column"),
        ("rollout.n_samples_per_prompt=4", "rollout.responses_per_prompt"),
        ("ppo.kl.kl_coef=0.1", "ppo.kl.controller.coefficient"),
        ("reward.label_key=x", "reward.label"),
    ],
)
def test_a_key_of_another_system_is_told_under_its_name_here(file: Path, key: str, ours: str) -> None:
    assert f"here it is `{ours}`" in problem(file, key)
    assert ours in all_keys(RunConfig)
