"""On what a run is made, for the head of its report: a configuration flows in; models, roles, machine and code flow
out."""

from __future__ import annotations

import os
import platform
import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from cluster.counts import counted
from cluster.estimate.memory import GIB
from cluster.placement.plan import ranks_of
from orchestrator.config.base import BaseConfig
from orchestrator.config.evaluation import EvaluationRun
from orchestrator.config.role_needs import ppo_roles, scoring_roles
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import section_key
from roles.config.rewards import FunctionReward, RemoteReward
from roles.redaction import without_credentials

SOURCE = Path(__file__).resolve().parents[2]
"""The folder that holds our packages."""
CARDS = Path("/proc/driver/nvidia/gpus")
"""A folder for each GPU of the machine: asking the driver for their names would take memory on a card."""
GIT_S = 10.0
"""Seconds for git to answer."""


def run_facts(config: BaseConfig) -> dict[str, str]:
    """Name → fact. The machine is the driver's."""
    said = {"Models": _models(config), "Scored by": _scorers(config), "Ranks": _ranks(config)}
    facts = {name: ", ".join(texts) for name, texts in said.items()} | {"Machine": machine(), "Code": code()}
    return {name: fact for name, fact in facts.items() if fact}


def _models(config: BaseConfig) -> Iterator[str]:
    """Each model with the sections that load it."""
    loaded: dict[str, list[str]] = {}
    for key, section in config.sharded.items():
        if section.model is not None:
            file = f"/{section.model.gguf_file}" if section.model.gguf_file else ""
            loaded.setdefault(f"{without_credentials(section.model.path)}{file}", []).append(key)
    return (f"{model} ({', '.join(keys)})" for model, keys in loaded.items())


def _scorers(config: BaseConfig) -> Iterator[str]:
    """Each reward and judge that is no model."""
    roles = scoring_roles(config) if isinstance(config, EvaluationRun) else {}
    for role, scorer in (ppo_roles(config) if isinstance(config, RunConfig) else roles).items():
        if isinstance(scorer, FunctionReward | RemoteReward):
            places = [scorer.path] if isinstance(scorer, FunctionReward) else map(without_credentials, scorer.urls)
            yield f"{' and '.join(places)} ({section_key(role)})"


def _ranks(config: BaseConfig) -> Iterator[str]:
    return (f"{role} {ranks_of(config.placement, role)}" for role in config.model_roles)


@cache
def machine() -> str:
    """Such as `2 CPUs (AMD EPYC 9V74), 23.6 GiB, 8 NVIDIA H100`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    name = next(names, platform.machine())
    cards = Counter(_card(file) for file in CARDS.glob("*/information"))
    gpus = [f"{count} {card}" for card, count in sorted(cards.items())]
    memory = f"{psutil.virtual_memory().total / GIB:.1f} GiB"
    return ", ".join([f"{counted(os.cpu_count() or 1, 'CPU')} ({name})", memory, *gpus])


def _card(file: Path) -> str:
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model")), "GPU")


def product() -> str:
    """`tetrarch 0.1.0`; `tetrarch, not installed` where it runs from its sources alone."""
    try:
        return f"tetrarch {version('tetrarch')}"
    except PackageNotFoundError:
        return "tetrarch, not installed"


@cache
def code() -> str:
    """Such as `tetrarch 0.1.0, commit 1a2b3c4d5e6f with changes`; no commit where the source is no checkout."""
    commit = _git("rev-parse", "--short=12", "HEAD") if (SOURCE / ".git").exists() else ""
    changed = " with changes" if commit and _git("status", "--porcelain", "--untracked-files=no") else ""
    return product() + (f", commit {commit}{changed}" if commit else "")


def _git(*words: str) -> str:
    """What git says; nothing where there is none, or it does not answer."""
    try:
        done = subprocess.run(["git", "-C", str(SOURCE), *words], capture_output=True, text=True, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
