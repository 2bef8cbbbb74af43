"""The batch of a step that has failed: it is kept, so that the reason can be investigated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.runtime.last_resort import at_most
from roles.batch_files import save_batch

FAILED = "failed"
"""Folder in `run_dir` for the batches of failed steps."""


def failed_file(run_dir: str, step: int) -> Path:
    """Where the batch of a step that has failed is kept."""
    return Path(run_dir) / FAILED / f"step-{step:06d}.safetensors"


def keep_failed(batch: Any, file: Path, within_s: float) -> str:
    """Write the batch; where it is, for the user."""
    with at_most(within_s, f"writing {file}"):
        save_batch(batch, file)
    return f"the batch of the step that failed is in {file} (texts: {file.with_suffix('.json').name})"
