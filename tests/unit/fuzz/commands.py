"""The commands as a user starts them, in this process and without their stages: an example costs milliseconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import typer
from hypothesis import HealthCheck, Phase, settings
from typer.testing import CliRunner

from cluster.placement.node import Node
from orchestrator.commands import app as cli
from orchestrator.commands.exit_codes import CONFIG_WRONG


@dataclass
class PaperCluster:
    """In place of `RayJobs`."""

    address: str

    def nodes(self) -> list[Node]:
        return [Node("big", 64, 0)]


STAGES = {
    "orchestrator.stages.ppo": "train",
    "orchestrator.stages.reward_training": "train_reward",
    "orchestrator.stages.evaluation": "evaluate_run",
    "orchestrator.stages.sft": "train_sft",
    "orchestrator.stages.dpo": "train_dpo",
    "orchestrator.stages.serving": "serve",
    "orchestrator.stages.labelling": "label_responses",
}
"""Module → its function that starts models."""
TIMES = int(os.environ.get("FUZZ", 0))
"""So many times as many examples, other ones each time."""


def examples(count: int) -> settings:
    """So many, always the same ones; `FUZZ` times as many, at random, where the environment says so."""
    return settings(
        max_examples=count * max(TIMES, 1),
        derandomize=not TIMES,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # a simpler example would cost minutes
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def nothing_starts() -> Iterator[None]:
    """In place of each stage is a function that does nothing; the model hub is never asked."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name in STAGES.items():
            module = ModuleType(place)
            setattr(module, name, lambda *arguments: None)
            patch.setitem(sys.modules, place, module)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        patch.setattr("cluster.runtime.jobs.RayJobs", PaperCluster)
        patch.setattr("orchestrator.commands.submit.run_job", lambda *arguments: 0)
        yield


def refusal(command: str, *arguments: str | Path) -> str | None:
    """How `tetrarch COMMAND` refuses its arguments; None: it would start. Any other end raises what was behind it."""
    result = CliRunner().invoke(cli.app, [command, *([] if "--" in arguments else ["--"]), *map(str, arguments)])
    if result.exit_code == 0:
        return None
    if result.exit_code != CONFIG_WRONG:
        cause = _cause(result.exception)
        if command == "plan" and isinstance(cause, SystemExit | typer.Exit):
            return None  # it does not fit, which the plan shows
        raise cause
    assert len(result.stderr.lower().split("error: ")) >= 2 and "Traceback" not in result.stderr, result.stderr
    return result.stderr


def _cause(error: BaseException | None) -> BaseException:
    while isinstance(error, SystemExit | typer.Exit) and error.__context__ is not None:
        error = error.__context__
    assert error is not None
    return error
