"""The command line: help, exit codes, and errors as one block on stderr."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import Result
from typer.testing import CliRunner

from cluster.errors import PlacementError, RankFailure, Terminated
from orchestrator.commands import app as cli
from orchestrator.commands.training_table import TRAININGS
from orchestrator.config.loading import load_config, load_root
from orchestrator.config.roots import ROOTS
from orchestrator.config.run import RunConfig
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.run.checkpoint import TRAINED, Checkpoints
from orchestrator.stages.chosen_checkpoint import chosen_checkpoint
from orchestrator.stages.model_export import StoredModel
from roles.errors import RewardError
from roles.text.template_date import DAY, kept_day

ROOT = Path(__file__).resolve().parents[4]
COMMANDS = ["train", "submit", "reward", "evaluate", "serve", "best-of-n", "config"]

MINIMAL = """
run_dir: {run_dir}
steps: 10
prompts: {{train: {{path: prompts.jsonl}}, max_tokens: 64}}
actor: {{model: {{path: no/such/policy}}}}
reward: {{type: model, model: {{path: reward}}}}
rollout: {{prompts_per_step: 8, max_response_tokens: 16}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL.format(run_dir=tmp_path / "run"))
    return path


@pytest.fixture(autouse=True)
def no_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DAY, "")  # put back at the end, whatever a command keeps


def tetrarch(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


REWARD_TRAINING = (
    "reward_training={output: made/model, model: {path: no/such/model}, "
    "pairs: {type: dataset, dataset: {path: pairs.jsonl}}}"
)

READ = SimpleNamespace(summary="prompts.train: 7 prompts", example="row 0 as the model reads it")
"""What the door has read."""
TRAINED_ON = SimpleNamespace(training=READ, heldout={}, ptx=None)

Drive = Callable[..., list[tuple[str, tuple[Any, ...]]]]


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> Drive:
    """Put stand-ins for the door and the drivers in place; they note their arguments, and raise `error`."""
    places = {
        "orchestrator.checks.preparation": [
            "prepare_train",
            "prepare_reward",
            "prepare_evaluate",
            "prepare_serve",
            "prepare_reward_service",
            "prepare_best_of_n",
        ],
        "orchestrator.stages.ppo": ["train"],
        "orchestrator.stages.reward_training": ["train_reward"],
        "orchestrator.stages.evaluation": ["evaluate_run"],
        "orchestrator.stages.serving": ["serve", "serve_reward"],
        "orchestrator.stages.best_of_n": ["best_of_n"],
    }

    def install(error: BaseException | None = None, at: str = "") -> list[tuple[str, tuple[Any, ...]]]:
        calls: list[tuple[str, tuple[Any, ...]]] = []

        def stand_in(name: str) -> Callable[..., Any]:
            def called(*arguments: Any) -> Any:
                calls.append((name, arguments))
                if error is not None and name == at:
                    raise error
                if name == "prepare_evaluate":
                    return {"": READ}
                return TRAINED_ON if name == "prepare_train" else READ

            return called

        for place, names in places.items():
            module = ModuleType(place)
            for name in names:
                setattr(module, name, stand_in(name))
            monkeypatch.setitem(sys.modules, place, module)
        return calls

    return install


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(command: str) -> None:
    result = tetrarch(command, "--help")
    assert result.exit_code == 0
    example = re.search(rf"Example: tetrarch {command} (.*?)\n\n", result.stdout, re.DOTALL)
    assert example is not None, result.stdout
    config, *overrides = example.group(1).partition(" --")[0].split()
    assert (ROOT / config).is_file()
    assert isinstance(load_config(ROOT / config, overrides), RunConfig)


def test_the_first_help_names_the_commands() -> None:
    result = tetrarch("--help")
    assert result.exit_code == 0
    assert [command for command in COMMANDS if command not in result.stdout] == []


def test_unknown_options_are_refused(file: Path) -> None:
    assert tetrarch("train", file, "--fast").exit_code == 2
    assert tetrarch("trian", file).exit_code == 2
    both = tetrarch("train", file, "--resume", "--resume-from", "4")
    assert both.exit_code == 2 and "say one of them" in both.stderr


# What is called


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train"], [("prepare_train", None), ("train", None, TRAINED_ON)]),
        (["train", "--resume"], [("prepare_train", "newest"), ("train", "newest", TRAINED_ON)]),
        (["train", "--resume-from", "4"], [("prepare_train", 4), ("train", 4, TRAINED_ON)]),
        (["reward"], [("prepare_reward", None), ("train_reward", None, READ)]),
        (["reward", "--resume-from", "4"], [("prepare_reward", 4), ("train_reward", 4, READ)]),
        (["evaluate"], [("prepare_evaluate",), ("evaluate_run", {"": READ}, None)]),
    ],
)
def test_the_door_comes_before_the_driver(
    file: Path, drive: Drive, arguments: list[str], expected: list[tuple[Any, ...]]
) -> None:
    calls = drive()
    command, *options = arguments
    result = tetrarch(command, file, "ppo.epochs=2", "seed=7", REWARD_TRAINING, *options)
    assert result.exit_code == 0, result.output
    config = load_root(ROOTS[command], file, ["ppo.epochs=2", "seed=7", REWARD_TRAINING])
    assert calls == [(name, (config, *rest)) for name, *rest in expected]
    assert READ.summary in result.output and result.output.count(READ.example) == 1


@pytest.mark.parametrize("command", ["reward", "evaluate", "serve"])
def test_an_override_that_only_other_commands_read_is_named(file: Path, drive: Drive, command: str) -> None:
    drive()
    told = "the override of steps is not used: steps is for tetrarch train\n"
    assert told in tetrarch(command, file, REWARD_TRAINING, "steps=3").stderr
    assert "is not used" not in tetrarch("train", file, "steps=3").stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["serve"], ["prepare_serve", "serve"]),
        (["serve", "--reward"], ["prepare_reward_service", "serve_reward"]),
        (["best-of-n", "--output", "rows.jsonl"], ["prepare_best_of_n", "best_of_n"]),
    ],
)
def test_serving_starts_what_is_asked_for(file: Path, drive: Drive, arguments: list[str], expected: list[str]) -> None:
    calls = drive()
    command, *options = arguments
    result = tetrarch(command, file, *options)
    assert result.exit_code == 0, result.output
    assert [name for name, _ in calls] == expected
    if options[1:]:
        assert calls[-1][1][1:] == (READ, Path(options[1]))


def test_the_rows_of_the_best_go_to_no_file_in_which_their_numbers_would_overwrite_them(
    file: Path, drive: Drive
) -> None:
    calls = drive()
    result = tetrarch("best-of-n", file, "--output", "rows.json")
    assert result.exit_code == 2 and "that belong to rows.jsonl; use that name" in " ".join(result.output.split())
    assert not calls


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("/proc/rows.jsonl", "--output=/proc: /proc cannot be written to"),
        ("config.yaml/rows.jsonl", "config.yaml is a file; choose a folder"),
        ("folder", "folder is a folder; name a file in it"),
        ("rows.jsonl", "rows.json is a folder; name a file in it"),
    ],
)
def test_rows_of_the_best_that_cannot_be_written_are_refused_before_anything_is_sampled(
    file: Path, drive: Drive, tmp_path: Path, output: str, said: str
) -> None:
    calls = drive()
    (tmp_path / "config.yaml").touch()
    for folder in ("folder", "rows.json"):
        (tmp_path / folder).mkdir()
    result = tetrarch("best-of-n", file, "--output", str(tmp_path / output))
    assert result.exit_code == 2 and said in " ".join(result.output.split()), result.output
    assert not calls
    made = tetrarch("best-of-n", file, "--output", str(tmp_path / "more" / "rows.jsonl"))
    assert made.exit_code == 0 and calls, "a folder that is missing is made"


@pytest.mark.parametrize(
    ("options", "user", "day"),
    [
        ([], "", "2026-01-31"),
        (["--step", "3"], "", "2026-01-30"),
        ([], "2026-05-01", "2026-05-01"),
        (["run_dir=elsewhere"], "", date.today().isoformat()),
    ],
)
def test_the_policy_of_a_run_is_measured_on_the_day_that_its_templates_wrote(
    file: Path, tmp_path: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch, options: list[str], user: str, day: str
) -> None:
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", keep=2)
    for step, kept in ((3, "2026-01-30"), (4, "2026-01-31")):
        checkpoints.save(step, {DAY: kept}, lambda folder: None)
    (tmp_path / "run/actor").mkdir()
    (tmp_path / "run/actor" / TRAINED).write_text('{"step": 4}')
    assert chosen_checkpoint(tmp_path / "run").step == 4
    monkeypatch.setattr(StoredModel, "open", lambda checkpoint, role: SimpleNamespace(checkpoint=checkpoint))
    monkeypatch.setenv(DAY, user)
    drive()
    result = tetrarch("evaluate", file, *options)
    assert result.exit_code == 0 and kept_day() == {DAY: day}, result.output


# Exit codes and errors


@pytest.mark.parametrize(
    ("error", "at", "code", "headline"),
    [
        (ConfigError("key=1: fix it"), "prepare_train", 2, "the configuration is wrong"),
        (ConfigError("key=1: fix it"), "train", 2, "the configuration is wrong"),
        (PlacementError("3 GPUs are missing"), "train", 2, "the placement does not fit"),
        (RankFailure("actor rank 1 on node a died"), "train", 1, "the run failed"),
        (RewardError("reward function failed"), "train", 1, "the run failed"),
        (CheckpointError("broken"), "train", 1, "the run failed"),
        (KeyError("surprise"), "train", 1, "the run failed"),
    ],
)
def test_exit_codes(
    file: Path, tmp_path: Path, drive: Drive, error: Exception, at: str, code: int, headline: str
) -> None:
    drive(error, at)
    result = tetrarch("train", file)
    assert result.exit_code == code
    assert f"error: {headline}" in result.stderr and str(error) in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""
    log = tmp_path / "run" / "logs" / "driver.log"
    assert log.exists() == (code == 1)
    if code == 1:
        assert str(log) in result.stderr and "Traceback" in log.read_text() and str(error) in log.read_text()
        assert ("KeyError: " in result.stderr) == isinstance(error, KeyError)


def test_a_log_that_cannot_be_written_does_not_hide_the_error(file: Path, tmp_path: Path, drive: Drive) -> None:
    drive(RewardError("no answer"), "train")
    (tmp_path / "run").mkdir()
    (tmp_path / "run/logs").write_text("in the way")
    result = tetrarch("train", file)
    assert result.exit_code == 1 and "no answer" in result.stderr and "cannot be written to" in result.stderr


def test_debug_shows_the_traceback(file: Path, drive: Drive) -> None:
    drive(RewardError("no"), "train")
    assert "Traceback" in tetrarch("train", file, "--debug").stderr


def test_interrupting_is_not_an_error_of_the_run(file: Path, tmp_path: Path, drive: Drive) -> None:
    drive(KeyboardInterrupt(), "train")
    result = tetrarch("train", file)
    assert result.exit_code not in (0, 2) and "the run failed" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "submit"])  # its file must travel
def test_a_wrong_configuration(file: Path, command: str) -> None:
    result = tetrarch(command, file, "ppo.epoch=2", "ppo.epochs=0")
    assert result.exit_code == 2
    heading, *lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert heading == "error: the configuration is wrong"
    assert any("ppo.epoch: unknown key; did you mean `epochs`?" in line for line in lines)
    assert any("ppo.epochs=0: must be at least 1" in line for line in lines)


@pytest.mark.parametrize(
    ("command", "name", "script"),
    [("plan", "tiny", "tiny"), ("train", "smoke", "smoke"), ("serve", "serve", "tiny"), ("sft", "sft", "tiny")],
)
def test_a_shipped_file_without_its_inputs_says_what_makes_them(
    command: str, name: str, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    result = tetrarch(command, f"configs/{name}.yaml")
    assert result.exit_code == 2
    (told,) = re.findall(r"runs/inputs/\S+ is made by (.+)", result.stderr)
    assert told == f".venv/bin/python configs/{script}/inputs.py"
    for folder in ("tiny", "smoke", "smollm2"):
        (tmp_path / "runs/inputs" / folder).mkdir(parents=True)
    assert "is made by" not in tetrarch(command, f"configs/{name}.yaml").stderr


def test_the_real_door_refuses_before_anything_starts(file: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n')
    result = tetrarch("train", file, f"prompts.train.path={tmp_path / 'prompts.jsonl'}")
    assert result.exit_code == 2
    assert "actor.model.path=no/such/policy does not exist" in result.stderr
    assert not (tmp_path / "run").exists()


# tetrarch config


def test_config_prints_what_load_config_reads(file: Path, tmp_path: Path) -> None:
    result = tetrarch("config", file, "ppo.epochs=2")
    assert result.exit_code == 0 and result.stderr == ""
    printed = tmp_path / "printed.yaml"
    printed.write_text(result.stdout)
    assert load_config(printed) == load_config(file, ["ppo.epochs=2"])
    assert result.stdout.startswith("# what tetrarch train, evaluate, serve read\n")


def test_config_prints_a_file_for_any_command(tmp_path: Path) -> None:
    file, printed = tmp_path / "pairs.yaml", tmp_path / "printed.yaml"
    file.write_text(REWARD_TRAINING.replace("=", ": ", 1))
    result = tetrarch("config", file)
    assert result.exit_code == 0 and result.stdout.startswith("# what tetrarch reward read\n")
    printed.write_text(result.stdout)
    assert load_root(ROOTS["reward"], printed) == load_root(ROOTS["reward"], file)


def test_config_hides_secrets(file: Path) -> None:
    remote = {"type": "remote", "urls": ["http://h"], "headers": {"Authorization": "tok-123"}}
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "reward": remote}))
    result = tetrarch("config", file, "critic.model.path=policy")
    assert result.exit_code == 0 and "type: remote" in result.output and "tok-123" not in result.output


def test_config_prints_the_schema() -> None:
    result = tetrarch("config", "--schema")
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert schema["$schema"].startswith("https://json-schema.org/") and "rollout" in schema["properties"]


def test_config_needs_a_file() -> None:
    result = tetrarch("config")
    assert result.exit_code == 2 and "--schema" in result.stderr


def test_python_m_orchestrator_is_the_same_and_light(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "orchestrator", "config", str(file), "ppo.epoch=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "did you mean `epochs`?" in done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert imported & {"torch", "ray", "vllm", "deepspeed", "transformers", "datasets"} == set()


# Interrupts


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped"),
        (Terminated(), 143, "ended by SIGTERM"),
        (RankFailure("critic rank 1 (node a) died in update"), 1, "critic rank 1 (node a) died in update"),
        (OSError("No space left on device"), 1, "No space left on device"),
    ],
)
def test_a_run_that_ends_early_says_from_where_it_goes_on(
    file: Path, drive: Drive, tmp_path: Path, error: BaseException, code: int, said: str
) -> None:
    drive(error, "train")
    result = tetrarch("train", file)
    assert result.exit_code == code
    assert said in result.output and f"{tmp_path / 'run'} has no checkpoint yet" in result.output
    Checkpoints(tmp_path / "run" / "checkpoints", keep=1).save(4, {}, lambda folder: None)
    assert "step-000004 stands; go on from there with --resume" in tetrarch("train", file).output
    drive(error, "evaluate_run")
    evaluated = tetrarch("evaluate", file)
    assert evaluated.exit_code == code and said in evaluated.output
    assert "resume" not in evaluated.output and "checkpoint" not in evaluated.output, "nothing is to be resumed"


def test_a_run_dir_that_cannot_be_read_does_not_hide_the_error(
    file: Path, drive: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(folder: Path) -> str:
        raise OSError(5, "Input/output error")

    drive(RewardError("no answer"), "train")
    monkeypatch.setattr("orchestrator.commands.exit_codes.progress_of", unreadable)
    result = tetrarch("train", file)
    assert result.exit_code == 1 and "no answer" in result.stderr and "traceback: " in result.stderr
    assert "cannot be read: Input/output error" in result.stderr


@pytest.mark.parametrize("option", ["--svg", "--json", "--trace"])
def test_a_file_that_cannot_be_written_is_told_before_the_plan_is_made(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("orchestrator.commands.plan_command.load_root", lambda *_: pytest.fail("too late"))
    for given, part in [("~/none/x", f"the folder {tmp_path}/none does not exist"), ("~", f"{tmp_path} is a folder")]:
        result = tetrarch("plan", ROOT / "configs/tiny.yaml", f"{option}={given}")
        assert result.exit_code == 2 and f"{option}={tmp_path}" in result.stderr and part in result.stderr


def test_a_file_where_nobody_can_make_one_is_told_with_the_fix() -> None:
    result = tetrarch("plan", ROOT / "configs/tiny.yaml", "--json=/proc/plan.json")
    assert result.exit_code == 2, result.stderr
    assert (
        "--json=/proc/plan.json cannot be written (No such file" in result.stderr and "choose another" in result.stderr
    )


def test_the_users_home_is_known_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text(MINIMAL.format(run_dir="~/run"))
    result = tetrarch("config", "~/run.yaml")
    assert result.exit_code == 0 and f"run_dir: {tmp_path}/run" in result.stdout
    for arguments in (["import-openrlhf", "~/none"], ["submit", "~/run.yaml", "--working-dir=~/none"]):
        result = tetrarch(*arguments)
        assert result.exit_code == 2 and f"{tmp_path}/none" in result.stderr


@pytest.mark.parametrize("path", ["a" * 256, "/" + "a/" * 2500, "\0", "\ud800"])
@pytest.mark.parametrize(
    "words",
    [
        *(["plan", "configs/tiny.yaml", f"--{name}"] for name in ("svg", "json", "trace", "calibrate", "efficiency")),
        *(["submit", "configs/tiny.yaml", "--working-dir"], ["config"], ["import-verl"], ["import-trl"], ["submit"]),
    ],
)
def test_a_path_that_no_system_takes_is_refused(words: list[str], path: str) -> None:
    result = tetrarch(*words, path)
    assert result.exit_code == 2 and "the path " in result.stderr and "; use another one" in result.stderr


def test_this_machine_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.os, "environ", environment := {"http_proxy": "http://proxy:1"})
    monkeypatch.setattr(cli, "app", lambda: None)
    monkeypatch.setattr(cli.os, "_exit", lambda code: None)
    cli.main()
    assert environment["no_proxy"] == environment["NO_PROXY"] == "localhost,127.0.0.1,::1"


def test_an_error_with_half_a_character_is_written_too(drive: Drive, file: Path, tmp_path: Path) -> None:
    drive(RewardError("it said \ud800"), "train")
    result = tetrarch("train", file)
    assert result.exit_code == 1
    assert "it said \\ud800" in (tmp_path / "run/logs/driver.log").read_text()


def test_a_python_without_the_packages_is_named() -> None:
    bare = [sys.executable, "-S", "-m", "orchestrator", "doctor"]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "lacks the package typer" in done.stderr and "PATH=" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_says_each_command_in_whole_words() -> None:
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "80"}).output
    assert "..." not in shown.partition("Commands:")[2] and max(map(len, shown.splitlines())) <= 80
    assert all(f"\n  {name}" in shown for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("tetrarch replay runs/a 3 --role ", ["actor", "critic"]),
        ("tetrarch export runs/a out --role ", ["actor", "critic", "reward"]),
        ("tetrarch export runs/a out --role c", ["critic"]),
        ("tetrarch plan a.yaml --command ", [*TRAININGS]),
        ("tetrarch submit a.yaml --command b", ["best-of-n"]),
    ],
)
def test_a_shell_is_offered_the_values_of_an_option(line: str, offered: list[str]) -> None:
    words = line.split(" ")
    asked = {"_TETRARCH_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    assert CliRunner().invoke(cli.app, [], prog_name="tetrarch", env=asked).stdout.split() == offered


def test_the_version_and_completion_can_be_had() -> None:
    assert re.fullmatch(r"tetrarch \d+\.\d+\.\d+\n", tetrarch("--version").output)
    assert "--install-completion" in tetrarch("--help").output
