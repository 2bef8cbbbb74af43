"""A reward file that raises when it is imported is refused at the door; one that takes long is left to the run."""

from __future__ import annotations

import time

import pytest

from orchestrator.checks import imported_files
from tests.unit.orchestrator.checks.door import REWARD, World, check, refused


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine takes longer than the usual seconds to start a process."""
    monkeypatch.setattr(imported_files, "IMPORT_S", 60.0)


@pytest.mark.parametrize(
    ("key", "command"),
    [
        ("reward", "train"),
        ("reward", "serve --reward"),
        ("evaluation.judge", "evaluate"),
        ("reward_training.pairs.judge", "reward"),
    ],
)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("limit = {}['limit']\n", "line 2 cannot be imported: KeyError: 'limit'"),
        ("import sys\nsys.exit(3)\n", "line 3 cannot be imported: SystemExit: 3"),
    ],
)
def test_what_raises_when_it_is_imported(world: World, key: str, command: str, text: str, said: str) -> None:
    world.function.write_text("import math\n" + text + REWARD)
    world.set("critic.initialise_from", "policy")
    world.set(key, {"type": "function", "path": str(world.function)})
    refused(world, f"{key}.path={world.function}, {said}; correct it", command=command)


def test_a_file_whose_process_ends(world: World) -> None:
    world.function.write_text("import os\nos._exit(3)\n" + REWARD)
    world.set("evaluation.judge", {"path": str(world.function)})
    refused(world, "evaluation.judge.path=", "cannot be imported: its process ended (exit code 3)", command="evaluate")


def test_a_slow_file_is_left_to_the_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imported_files, "IMPORT_S", 0.2)
    world.function.write_text("import time\ntime.sleep(600)\n" + REWARD)
    world.set("evaluation.judge", {"path": str(world.function)})
    began = time.monotonic()
    check("evaluate", world)
    assert time.monotonic() - began < 100
