"""Configuration files: what loads, what comes back, and which command reads what."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.kl import AdaptiveKl, FixedKl
from orchestrator.config.loading import dump_config, load_all, load_config, load_root, validate
from orchestrator.config.reward_training import RewardTrainingRun
from orchestrator.config.role_needs import scoring_roles
from orchestrator.config.roots import AnyConfig, json_schema
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import all_keys, sections_in
from orchestrator.config.yaml_text import parse_yaml, to_yaml
from orchestrator.errors import ConfigError
from tests.unit.orchestrator.config.files import ENVIRONMENT, MINIMAL, PAIRS, REMOTE, problem

ROOT = Path(__file__).resolve().parents[4]


# What loads


def test_defaults_are_filled_in(file: Path) -> None:
    config = load_config(file)
    assert (config.steps, config.seed, config.ppo.epochs, config.samples_per_step) == (10, 1, 4, 8)


@pytest.mark.parametrize(("turns", "response", "longest"), [(3, 48, 96), (8, 95, 96), (None, 16, 80)])
def test_how_long_a_sample_can_be(file: Path, turns: int | None, response: int, longest: int) -> None:
    config = load_config(file, [f"environment={ENVIRONMENT}", f"environment.max_turns={turns}"] if turns else [])
    assert (config.longest_response, config.longest_sample) == (response, longest)


def test_an_environments_own_reward_is_no_role(file: Path) -> None:
    own = ["reward={type: environment}", f"environment={ENVIRONMENT}", "critic.model={path: x}"]
    assert list(scoring_roles(load_config(file, own))) == []
    both = load_config(file, ["reward={type: function, path: f.py}", *own[1:]])
    assert list(scoring_roles(both)) == ["reward"]


def test_overrides_are_yaml_and_the_last_one_wins(file: Path) -> None:
    overrides = ["ppo.epochs=2", "ppo.epochs=3", "actor.optimizer.betas=[0.8, 0.9]", "prompts.heldout={path: h.jsonl}"]
    config = load_config(file, [*overrides, "critic.model.path=value=model", "device=cuda"])
    assert config.ppo.epochs == 3
    assert config.actor.optimizer.betas == (0.8, 0.9)
    assert config.prompts.heldout is not None and config.prompts.heldout.path == "h.jsonl"
    assert config.critic.model is not None and config.critic.model.path == "value=model"
    assert config.device == "cuda"


def test_relative_paths_stay_relative_to_the_current_directory(file: Path) -> None:
    assert load_config(file).prompts.train.path == "prompts.jsonl"


def test_an_override_in_a_default_variant_keeps_its_type(file: Path) -> None:
    assert load_config(file, ["ppo.kl.controller.coefficient=0.1"]).ppo.kl.controller == FixedKl(coefficient=0.1)
    adaptive = load_config(file, ["ppo.kl.controller={type: adaptive, target: 6}"]).ppo.kl.controller
    assert adaptive == AdaptiveKl(type="adaptive", target=6.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("3", 3),
        ("10_000", 10_000),
        ("010", 10),
        ("0x10", 16),
        ("-.inf", float("-inf")),
        ("on", "on"),
        ("no", "no"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("'1e-5'", "1e-5"),
        ("1e", "1e"),
        ("=", "="),
        ("v1.2.3", "v1.2.3"),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text: str, value: Any) -> None:
    read = parse_yaml(f"key: {text}")["key"]
    assert read == value and type(read) is type(value)
    assert parse_yaml(to_yaml({"key": value})) == {"key": value}


def test_merge_keys_may_override_what_they_merge() -> None:
    text = "outer: {base: &b {<<: &a {x: 1, y: 1}, x: 2}}\nother: {<<: *b, y: 3}"
    assert parse_yaml(text) == {"outer": {"base": {"x": 2, "y": 1}}, "other": {"x": 2, "y": 3}}


# What comes back


def test_the_dump_loads_back_to_the_same_configuration(file: Path, tmp_path: Path) -> None:
    overrides = ["actor.optimizer.learning_rate=3e-7", "ppo.kl.controller={type: adaptive, target: 6}", "run_dir='1e3'"]
    config = load_config(file, overrides)
    again = tmp_path / "dumped.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_differs_from_the_defaults_is_the_whole_configuration(path: Path, tmp_path: Path) -> None:
    said, again = load_all(path), tmp_path / path.name
    again.write_text(dump_config(*said.values(), minimal=True))
    assert load_all(again) == said
    assert "clip: 0.2" not in again.read_text()


def test_members_of_lists_and_mappings_are_minimal_too(file: Path, tmp_path: Path) -> None:
    members = "{a: {type: model, model: {path: policy}}, b: {type: function, path: reward.py, workers: 3}}"
    trackers = "[{type: tensorboard, aliases: true}, {type: wandb, project: mine}]"
    overrides = [f"reward={{type: ensemble, members: {members}}}", f"report.trackers={trackers}"]
    said = load_all(file, [*overrides, "critic.model.path=policy"])
    again = tmp_path / "minimal.yaml"
    again.write_text(dump_config(*said.values(), minimal=True))
    assert load_all(again) == said
    kept = parse_yaml(again.read_text())
    assert kept["reward"]["members"] == parse_yaml(members)
    assert kept["report"]["trackers"] == parse_yaml(trackers)


def test_the_dump_has_every_default_and_no_secret(file: Path) -> None:
    text = dump_config(load_config(file, [REMOTE, "critic.model.path=policy"]))
    assert "lambda: 0.95" in text and "micro_batch_tokens: 4096" in text
    assert "tok-123" not in text and "Authorization: '**********'" in text
    assert "me:pass" not in text and "pass@" not in text and "http://***@host/x" in text


def test_every_field_says_what_it_is() -> None:
    seen: set[type[BaseModel]] = set()

    def undescribed(section: type[BaseModel]) -> list[str]:
        if section in seen:
            return []
        seen.add(section)
        found = [f"{section.__name__}.{name}" for name, field in section.model_fields.items() if not field.description]
        inner = [s for field in section.model_fields.values() for s in sections_in(field.annotation)]
        return found + [line for s in inner for line in undescribed(s)]

    assert undescribed(AnyConfig) == []


def test_the_configuration_loads_without_the_engines(file: Path) -> None:
    code = (
        "import sys; from orchestrator.config.loading import load_config, dump_config\n"
        "import orchestrator.commands.app\n"
        f"dump_config(load_config({str(file)!r}))\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'deepspeed', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Which command reads what


SAMPLED = "reward_training.pairs={type: sampled, judge: {path: judge.py}}"


def test_a_reward_model_needs_its_section_alone(pairs: Path) -> None:
    config = load_root(RewardTrainingRun, pairs)
    assert config.run_dir == "runs/made/model-run" and config.policy is None
    assert config.checkpoint.keep == 2 and config.report.html


def test_a_file_for_another_command_is_called_that(file: Path, pairs: Path) -> None:
    assert "pairs.yaml, a file for `tetrarch reward`: " in problem(pairs).splitlines()[0]
    assert "a file for" not in problem(file, "steps=0")
    assert "a file for" not in problem(file, "steps=null")  # what evaluate reads, which is a part of it, is still there


def test_one_file_serves_several_commands(file: Path) -> None:
    both = tuple(line for line in PAIRS.strip().splitlines())
    file.write_text(MINIMAL + "\n".join(both))
    training, rewarding, evaluating = (load_root(root, file) for root in (RunConfig, RewardTrainingRun, EvaluationRun))
    assert (training.run_dir, evaluating.run_dir, rewarding.run_dir) == ("runs/x", "runs/x", "runs/made/model-run")
    assert list(load_all(file)) == ["train", "evaluate", "reward", "serve"]
    assert not hasattr(training, "reward_training") and not hasattr(evaluating, "steps")


def test_sampled_pairs_need_a_policy(file: Path, pairs: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_root(RewardTrainingRun, pairs, [SAMPLED, "rollout={prompts_per_step: 1, max_response_tokens: 4}"])
    (line,) = str(caught.value).splitlines()
    assert "actor and prompts are missing" in line and "pairs.type: dataset" in line
    file.write_text(MINIMAL + PAIRS)
    policy = load_root(RewardTrainingRun, file, [SAMPLED]).policy
    assert policy is not None and policy.longest_sample == 80
    with pytest.raises(ConfigError, match="environment=null"):
        load_root(RewardTrainingRun, file, [SAMPLED, f"environment={ENVIRONMENT}"])


def test_an_override_of_what_follows_from_another_key_is_refused(file: Path, pairs: Path) -> None:
    for load in (partial(load_root, RewardTrainingRun), load_all):
        with pytest.raises(ConfigError, match=r"run_dir=/x: run_dir follows from reward_training\.output; set that"):
            load(pairs, ["run_dir=/x"])
    file.write_text(MINIMAL + PAIRS)
    both = load_all(file, ["run_dir=/x"])  # another command reads it
    assert both["train"].run_dir == "/x" and both["reward"].run_dir == "runs/made/model-run"


def test_a_missing_output_is_one_problem(pairs: Path) -> None:
    for said in ("missing", "null", "3"):
        pairs.write_text(re.sub("output: .*", "" if said == "missing" else f"output: {said}", PAIRS))
        with pytest.raises(ConfigError) as caught:
            load_root(RewardTrainingRun, pairs)
        (line,) = str(caught.value).splitlines()
        assert "reward_training.output" in line


def test_a_section_of_another_command_without_its_type_has_known_keys(pairs: Path) -> None:
    def problem(override: str) -> str:
        with pytest.raises(ConfigError) as caught:
            load_root(RewardTrainingRun, pairs, [override])
        (line,) = str(caught.value).splitlines()
        return line

    assert "reward.modle: unknown key; did you mean `model`?" in problem("reward.modle=3")
    assert "reward.model.pth: unknown key; did you mean `path`?" in problem("reward.model={pth: m}")
    assert "reward.combine.tpe: unknown key; did you mean `type`?" in problem("reward.combine.tpe=mean")
    known = ["reward.model.path=m", "reward.headers={x-any: v}", "reward.members.mine.urls=[http://h]"]
    assert load_root(RewardTrainingRun, pairs, known) == load_root(RewardTrainingRun, pairs)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("reward_training.epoch=2", "reward_training.epoch: unknown key; did you mean `epochs`?"),
        ("reward_training.epochs=0", "reward_training.epochs=0: must be at least 1"),
        ("reward_trainin={}", "reward_trainin: unknown key; did you mean `reward_training`?"),
        ("reward_trainin=null", "reward_trainin: unknown key"),
        ("reward_training.pairs={type: datasets}", "must be one of dataset, sampled; did you mean `dataset`?"),
    ],
)
def test_a_key_of_another_command_is_checked_though_it_is_not_read(file: Path, override: str, part: str) -> None:
    assert part in problem(file, override)


def test_a_section_of_another_command_need_not_be_whole(file: Path, pairs: Path) -> None:
    assert load_config(file, ["reward_training.epochs=2"]) == load_config(file)
    assert load_config(file, ["reward_training=null"]) == load_config(file)
    halves = ["actor.lora.rank=4", "critic.warmup.max_steps=3", "rollout={}", "reward={}", "steps=null"]
    assert load_root(RewardTrainingRun, pairs, halves) == load_root(RewardTrainingRun, pairs)
    with pytest.raises(ConfigError, match="must be at least 1"):
        load_root(RewardTrainingRun, pairs, ["steps=0"])


def test_a_section_that_must_be_there_is_missing_if_it_is_null(file: Path) -> None:
    assert "rollout: missing; add it" in problem(file, "rollout=null")


def test_the_users_home_is_known_in_every_path(file: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/users/me")
    function = "{type: function, path: ~/score.py}"
    config = load_config(
        file,
        [
            *("run_dir=~/run", "model_cache=~/cache", "actor.model.path=~/policy", "critic.model.path=~/critic"),
            *("prompts.train.path=~/a.jsonl", "prompts.heldout.path=~/b.jsonl", "reference.model.path=~nobody-here/x"),
            *(f"reward={function}", f"evaluation.judge={function}", "environment={path: ~/env.py, max_tokens: 96}"),
        ],
    )
    shown = dump_config(config)
    assert shown.count("/users/me") == 9 and shown.count("~") == 1, shown
    reward = load_root(RewardTrainingRun, pairs, ["reward_training.output=~/x"])
    assert (reward.reward_training.output, reward.run_dir) == ("/users/me/x", "/users/me/x-run")
    home = Path("/users/me/none.yaml")
    with pytest.raises(ConfigError, match=f"configuration file {home} does not exist"):
        load_config("~/none.yaml")


def test_a_configuration_never_changes(file: Path) -> None:
    config = load_config(file)
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3  # type: ignore[misc]


def test_the_schema_is_json_and_names_every_top_level_key() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert set(schema["properties"]) == {path for path in all_keys(AnyConfig) if "." not in path}
    assert {"reward_training", "steps", "evaluation"} <= set(schema["properties"])
    assert {"required": ["reward_training"]} in schema["anyOf"] and schema["required"] == []
    assert schema["additionalProperties"] is False


def test_validate_takes_plain_values() -> None:
    assert validate(parse_yaml(MINIMAL)).steps == 10
