"""What ranks are forked with: what takes long, and nothing that would keep the server from forking."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from orchestrator.groups.imports import imports_for

ROOT = Path(__file__).resolve().parents[4]
GIVEN = {"CUDA_VISIBLE_DEVICES": ""}


def test_a_server_that_has_imported_all_this_is_safe_to_fork() -> None:
    """If it were not, workers would start as ever, and nobody would notice but by the time that a start takes."""
    made = imports_for("cpu", GIVEN)
    assert made is not None
    program = (
        f"import importlib; [importlib.import_module(name) for name in {made.modules}]\n"
        "from cluster.runtime.fork_server import is_safe\n"
        "assert is_safe(), 'threads, CUDA or Ray'"
    )
    environment = {**os.environ, **made.environment, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_with_gpus_nothing_is_forked() -> None:
    assert imports_for("cuda", GIVEN) is None
