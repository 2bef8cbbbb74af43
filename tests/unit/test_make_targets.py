"""Every target of the Makefile is run by something, and every measured figure of a README can be measured again.

What a target's recipe starts is read from `make --dry-run` and must exist: files, modules, configurations, overrides.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from orchestrator.commands import app as cli
from orchestrator.config.loading import load_config, load_root
from orchestrator.config.roots import ROOTS
from tests.gpu import smoke
from tests.readmes import ROOT, sections

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = sorted(set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE)))
CI = ".ci/run"

HERE, BENCHMARKS = "tests/unit/test_make_targets.py::", "tests/unit/test_benchmarks.py::"
RUN_BY = {
    "help": HERE + "test_help_names_every_target",
    "setup": CI,
    "lint": CI,
    "test": CI,
    "check": HERE + "test_check_is_lint_and_test",
    "smoke": HERE
    + "test_a_recipe_starts_what_exists",  # what it computes: tests/integration/test_commands.py, in small
    "pipeline": HERE + "test_a_recipe_starts_what_exists",  # in small: tests/integration/test_commands.py
    "soak": "tests/integration/test_benchmarks.py::test_a_soak_in_small",
    "remedies": "tests/unit/test_remedies.py::test_every_run_is_one_that_can_start",
    "pictures": "tests/unit/configs/test_illness.py::test_a_limit_that_depends_on_the_first_steps_is_drawn",
    "test-slow": HERE + "test_there_are_tests_of_every_mark",
    "test-gpu": HERE + "test_there_are_tests_of_every_mark",
    "anchors": "tests/anchors/test_counting.py::test_the_target_is_counted",
    "architectures": "tests/integration/test_architectures.py::test_an_architecture_is_right_or_refused",
    "mutants": "tests/unit/test_mutants.py::test_a_planted_fault_is_noticed_and_taken_back",
    "chaos": "tests/integration/test_ppo.py::test_kills_and_resumes_give_the_same_run",
    "bench": BENCHMARKS + "test_the_benchmark_of_a_ppo_step",
    "bench-gpu": BENCHMARKS + "test_the_benchmark_of_a_card",
    "format": HERE + "test_a_recipe_starts_what_exists",  # `make lint` checks what it leaves
    "lock": "tests/unit/test_architecture.py::test_lock_file_follows_pyproject",
    "clean": HERE + "test_clean_leaves_the_runs",
}
"""Target → the test that runs it, the same in small, or what it leaves; or CI."""

FIGURES = {
    "README.md: top": "make test-gpu",
    "README.md: What you need": "make setup",
    "README.md: What `make smoke` does": "make smoke",
    "tests/README.md: Kills": "make chaos",
    "tests/README.md: Hangs": ".venv/bin/pytest -q -s -m slow tests/integration/test_hangs.py",
    "cluster/README.md: Against our own steps on a CPU": ".venv/bin/python tests/benchmarks/plan_order.py "
    "configs/tiny.yaml --seed 2",
    "README.md: Commands": ".venv/bin/tetrarch train configs/tiny.yaml",
    "roles/README.md: AI feedback": ".venv/bin/tetrarch label configs/label.yaml",
    "roles/README.md: Fine-tuning on demonstrations": ".venv/bin/tetrarch sft configs/sft.yaml",
    "roles/README.md: Learning from preferences": ".venv/bin/tetrarch dpo configs/dpo.yaml",
    "roles/README.md: Conversations with an environment": ".venv/bin/tetrarch train configs/tiny-guess.yaml",
    "roles/README.md: LoRA": ".venv/bin/python tests/benchmarks/lora.py",
    "roles/README.md: Long contexts": ".venv/bin/python tests/benchmarks/long_context.py",
    "roles/README.md: Architectures": "make architectures",
    "orchestrator/README.md: Over-optimisation": ".venv/bin/tetrarch train configs/overoptimise.yaml",
    "orchestrator/README.md: Pipelines": "make pipeline",
    "orchestrator/README.md: Retraining the reward model": ".venv/bin/tetrarch train configs/retraining.yaml",
    "orchestrator/README.md: Serving": ".venv/bin/tetrarch best-of-n configs/tiny.yaml serving.responses=16",
    "orchestrator/README.md: Rejection sampling": ".venv/bin/tetrarch best-of-n configs/serve.yaml run_dir=runs",
    "cluster/README.md: The plan": ".venv/bin/tetrarch plan configs/llama3-70b-32xa800.yaml",
    "cluster/README.md: How seconds are counted": "tests/unit/orchestrator/planning/test_trace.py",
    "cluster/README.md: Against published steps": ".venv/bin/python -m tests.reference.published",
    "tests/README.md: Known optima": "make anchors",
    "tests/README.md: Speed": "make bench",
    "tests/README.md: What `make smoke` reached": "make smoke",
    "tests/gpu/README.md: What a card said": "make test-gpu",
}
"""Section of a README with measured figures → the command that measures them again, which it names."""

SAID = {
    "orchestrator/README.md: Looking at what a run writes",  # how often a run is looked at
    "configs/README.md: All keys",  # defaults and bounds
    "orchestrator/README.md: Metrics",  # descriptions
    "cluster/README.md: Placement",  # a deadline
    "orchestrator/README.md: Evaluation and report",  # the width of an interval
    "roles/README.md: Training a reward model",  # the width of an interval
    "orchestrator/README.md: Checkpoints and resuming",  # how often one is saved
    "orchestrator/README.md: When something breaks",  # limits of the canary
    "orchestrator/README.md: Alerts",  # limits of the rules
    "docker/README.md: With Ray's own command",  # Ray's grace period
    "docker/README.md: Time to end",  # grace periods
    "cluster/README.md: What is not modelled",  # of a published row
    "tests/README.md: Make targets",
}
"""Sections whose figures are settings, not measurements."""

FIGURE = re.compile(r"\d\s?(?:s|ms|GiB|MiB|GB|%|nats|minutes|seconds|standard errors)(?!\w)")


def dry_run(target: str) -> list[list[str]]:
    """The commands of `target` that start something of this project, as words."""
    command = ["make", "--dry-run", "--no-print-directory", target]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=60, check=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith((".venv/bin/", ".ci/"))]
    return [shlex.split(line) for line in lines]


def exists(node: str) -> bool:
    file, _, name = node.partition("::")
    return (ROOT / file).is_file() and (not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"))


def test_something_runs_every_target() -> None:
    assert sorted(RUN_BY) == TARGETS
    assert [node for node in RUN_BY.values() if not exists(node)] == []
    said = re.findall(r"^make ([a-z-]+)", (ROOT / CI).read_text(), re.MULTILINE)
    assert sorted(said) == sorted(target for target, by in RUN_BY.items() if by == CI)


@pytest.mark.parametrize("target", TARGETS)
def test_a_recipe_starts_what_exists(target: str) -> None:
    for program, *words in dry_run(target):
        if program.startswith(".ci/"):
            assert (ROOT / program).is_file()
        elif program.endswith("python"):
            if words[0] == "-m":
                assert find_spec(words[1]), words
            else:
                assert (ROOT / words[0]).is_file(), words
        elif program.endswith("tetrarch"):
            command, config, *overrides = words
            assert command in get_command(cli.app).commands  # type: ignore[attr-defined]
            if command == "verify-resume":
                parsed = get_command(cli.app).commands[command].make_context(command, [config, *overrides])  # type: ignore[attr-defined]
                command, overrides = "train", parsed.params["overrides"] or []
            assert load_root(ROOTS[command], ROOT / config, overrides)
        elif program.endswith("pytest"):
            assert [word for word in words if word.startswith("tests/") and not (ROOT / word).exists()] == []
        else:
            assert program in (".venv/bin/ruff", ".venv/bin/mypy")


def test_the_smoke_run_is_sound_on_every_processor() -> None:
    """Also with the settings for one that has no bfloat16 products."""
    (without,) = re.findall(r"^FLOAT32 := (.*)$", MAKEFILE, re.MULTILINE)
    for overrides in ([], shlex.split(without)):
        assert load_config(ROOT / "configs/smoke.yaml", overrides).dtype == ("float32" if overrides else "bfloat16")
    commands = [" ".join(words[1:2]) for words in dry_run("smoke") if words[0].endswith("tetrarch")]
    assert commands == ["reward", "train"]


def test_help_names_every_target() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, text=True, capture_output=True, timeout=60, check=True
    )
    assert sorted(line.split()[1] for line in done.stdout.splitlines()) == TARGETS


def test_check_is_lint_and_test() -> None:
    assert re.search(r"^check: lint test ", MAKEFILE, re.MULTILINE)


def test_clean_leaves_the_runs(tmp_path: Path) -> None:
    for name in (".venv/bin", ".uv", "runs/smoke", *(f"{part}/__pycache__" for part in ("orchestrator", "tests"))):
        (tmp_path / name).mkdir(parents=True)
    for name in ("roles", "cluster", "configs"):
        (tmp_path / name).mkdir()
    subprocess.run(["make", "-f", str(ROOT / "Makefile"), "clean"], cwd=tmp_path, timeout=60, check=True)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["cluster", "configs", "orchestrator", "roles", "runs", "runs/smoke", "tests"]


@pytest.mark.parametrize("mark", ["slow", "gpu"])
def test_there_are_tests_of_every_mark(mark: str) -> None:
    marked = [file for file in (ROOT / "tests").rglob("test_*.py") if f"pytest.mark.{mark}" in file.read_text()]
    assert len([file for file in marked if file != Path(__file__)]) > 1


def test_every_measured_figure_names_what_measures_it() -> None:
    found = sections()
    with_figures = {name for name, text in found.items() if FIGURE.search(re.sub(r"```.*?```", "", text, flags=re.S))}
    assert with_figures - SAID <= FIGURES.keys(), "say in FIGURES what measures them"
    for name, command in FIGURES.items():
        program, *words = command.split()
        text = found[name]
        assert command in text or (program == "make" and words[0] in TARGETS and "tests/gpu/README.md" in text), name


def test_the_smoke_run_s_settings_for_a_card_are_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "smoke.yaml"
    path.write_text(yaml.safe_dump(smoke.settings()), encoding="utf-8")
    card, cpu = load_config(path), load_config(ROOT / "configs/smoke.yaml")
    assert card.device == "cuda" and card.placement.type == "groups"
    assert "kv_cache_gib" not in card.rollout.engine.model_fields_set
    assert (card.ppo, card.actor, card.critic, card.seed) == (cpu.ppo, cpu.actor, cpu.critic, cpu.seed)
