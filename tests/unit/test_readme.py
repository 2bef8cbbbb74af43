"""Every command, piece of configuration, path, link and test that a README names is there.

The commands that take seconds to minutes on the tiny model are really run, in tests/integration/test_commands.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter
from typer.main import get_command

from cluster.config import PlacementConfig
from orchestrator.commands import app as cli
from orchestrator.config.data import RecordsConfig
from orchestrator.config.loading import load_all, load_config
from orchestrator.config.pipeline import PipelineConfig
from orchestrator.config.retraining import RetrainingConfig
from orchestrator.config.run import RunConfig
from roles.config.environment import FunctionEnvironment
from roles.config.rewards import RewardConfig
from tests.readmes import BLOCKS, EVERYTHING, READMES, ROOT, anchors, blocks, commands


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_there_are_commands_and_blocks() -> None:
    assert len(commands()) >= 10
    assert len([text for language, text in BLOCKS if language == "yaml"]) >= 3


def known_commands(program: str) -> dict[str, Any]:
    """Name → command, of ours or of Ray's."""
    if program != ".venv/bin/ray":
        return get_command(cli.app).commands  # type: ignore[attr-defined, no-any-return]
    from ray.scripts.scripts import cli as ray

    return ray.commands  # type: ignore[no-any-return]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_are_known(words: list[str]) -> None:
    program, *rest = words
    if program == "make":
        assert set(rest) <= targets()
    elif program == ".venv/bin/python":
        assert (ROOT / rest[0]).is_file()
    else:
        known = known_commands(program)
        command, *arguments = rest
        flags = [word.strip("[]").partition("=")[0] for word in arguments if word.strip("[]").startswith("--")]
        taken = {name for parameter in known[command].params for name in parameter.opts}
        assert set(flags) <= taken
        configs = [word for word in arguments if word.endswith(".yaml")]
        if program == ".venv/bin/tetrarch" and configs:
            overrides = [word for word in arguments if "=" in word]
            assert load_all(ROOT / configs[0], overrides)


def test_every_make_target_is_described() -> None:
    described = set(re.findall(r"`make ([a-z-]+)", EVERYTHING))
    assert described - {"help"} == targets() - {"help"}


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "yaml"])
def test_pieces_of_configuration_are_valid(text: str, tmp_path: Path) -> None:
    piece = yaml.safe_load(text)
    adapters: dict[str, TypeAdapter[Any]] = {
        "dataset": TypeAdapter(RecordsConfig),
        "environment": TypeAdapter(FunctionEnvironment),
        "reward": TypeAdapter(RewardConfig),
        "retraining": TypeAdapter(RetrainingConfig),
        "placement": TypeAdapter(PlacementConfig),
        "pipeline": TypeAdapter(PipelineConfig),
    }
    if len(piece) == 1:
        (key,) = piece
        adapters[key].validate_python(piece[key])
        return
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert isinstance(load_config(path), RunConfig)


def test_inline_pieces_of_configuration_are_valid() -> None:
    """`key: {…}` in the text names keys that exist, with values that they take."""
    reward = "reward={type: function, path: configs/tiny/reward.py}"
    inline = re.findall(r"`((?:[a-z_]+\.)*[a-z_]+): (\{[^`]*\})`", EVERYTHING)
    assert inline
    for key, value in inline:
        if key == "pairs":
            key = "reward_training.pairs"
        needed = ["environment={path: env.py, max_tokens: 64}"] if value == "{type: environment}" else []
        value = re.sub(r": [KMN]\b", ": 1", value)
        assert load_config(ROOT / "configs/tiny.yaml", [reward, *needed, f"{key}={value}"])


@pytest.mark.parametrize("readme", READMES)
def test_paths_that_a_readme_names_exist(readme: str) -> None:
    """From the repository's root, or from the README's own folder: all in our folders, and every Python file but
    a reader's own, which is called `my_…`."""
    ours = "|".join(Path(name).parts[0] for name in READMES if "/" in name)
    named = re.findall(r"`([\w.-]+(?:/[\w.-]*)*)`", READMES[readme])
    paths = [name for name in named if re.match(rf"({ours})/", name) or (name.endswith(".py") and name[:3] != "my_")]
    homes = (ROOT, (ROOT / readme).parent)
    assert [path for path in paths if not any((home / path).exists() for home in homes)] == []


def test_there_are_paths() -> None:
    assert len(re.findall(r"`(?:orchestrator|roles|cluster|configs|tests)/[\w/.]+\.(?:py|yaml)`", EVERYTHING)) > 10


@pytest.mark.parametrize("readme", READMES)
def test_links_lead_somewhere(readme: str) -> None:
    for link in re.findall(r"\]\((?!https:)([^)]*)\)", READMES[readme]):
        path, _, heading = link.partition("#")
        target = (ROOT / readme).parent / path if path else ROOT / readme
        assert target.exists(), link
        assert not heading or heading in anchors(target.read_text(encoding="utf-8")), link


def test_the_first_readme_leads_to_all() -> None:
    assert [name for name in READMES if name != "README.md" and f"]({name}" not in READMES["README.md"]] == []


def test_the_first_readme_is_short_and_says_its_limits_first() -> None:
    lines = READMES["README.md"].splitlines()
    assert len(lines) <= 150
    limits = next(number for number, line in enumerate(lines) if "What has run, and what has not" in line)
    assert limits < 30


def test_your_own_data_and_your_own_reward_fit_together() -> None:
    """The row, the function and the configuration at the top of configs/README.md."""
    (_, row), (_, function), (language, _) = blocks(READMES["configs/README.md"])[:3]
    assert language == "yaml"  # what is in it: test_pieces_of_configuration_are_valid
    columns = {name: [value] * 2 for name, value in json.loads(row).items()}
    prompts = columns.pop("prompt")
    names: dict[str, Any] = {}
    exec(function, names)
    tokens = {"response_token_ids": [[1], [2]], "finished": [True, False]}
    assert names["score"](prompts, ["5", "6"], **tokens, columns=columns) == [1.0, 0.0]


def test_the_environment_of_the_readme_plays() -> None:
    (text,) = (text for _, text in BLOCKS if "class Env" in text)
    names: dict[str, Any] = {}
    exec(text, names)
    environment = names["Env"]()
    assert environment.reset({"question": "2 + 3?", "answer": "5"}, seed=1)[0]["content"] == "2 + 3?"
    assert environment.step("6")[1] == 0.0
    assert environment.step(" 5\n") == (None, 1.0)


def test_the_tests_that_the_readmes_name_exist() -> None:
    """The table of features says which test shows each."""
    named = set(re.findall(r"`(test_\w+)`", EVERYTHING))
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 30 and not named - defined


def test_the_plan_is_what_the_command_prints() -> None:
    """Figures of memory and time change with the planner; those in a README must follow."""
    (shown,) = re.findall(r"^```text\n(32 GPUs.*?)^```", EVERYTHING, re.MULTILINE | re.DOTALL)
    words = [sys.executable, "-m", "orchestrator", "plan", "configs/llama3-70b-32xa800.yaml"]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, timeout=120, check=True)
    assert [line.rstrip() for line in done.stdout.splitlines()] == shown.splitlines()
