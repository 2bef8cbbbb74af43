"""What the processes of ranks begin with: environment variables, and the modules of the process that they are forked
from. A device flows in."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.runtime.fork_server import Imports
from roles.text.template_date import kept_day

MODULES = ("roles.actor", "roles.rollout", "deepspeed")
"""Modules to import. Not vLLM: it imports Ray, which reads environment variables that only a worker has."""
AS_RANKS = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
"""Environment variables that must be set before DeepSpeed is imported, with a rank's values."""


def imports_for(device: str, environment: Mapping[str, str]) -> Imports | None:
    """The modules that every rank imports, with its `environment`; None: nothing is forked.

    With GPUs each rank imports for itself: whether a process that has imported a CUDA build may be forked is untested.
    """
    return Imports(MODULES, {**environment, **AS_RANKS}) if device == "cpu" else None


def rank_environment(device: str) -> dict[str, str]:
    """Environment variables of every rank's process."""
    shared = {"TOKENIZERS_PARALLELISM": "false", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    shared |= kept_day()
    if device == "cuda":
        return shared
    # The roles take turns on a machine's cores: a thread that waits actively takes time from the others.
    return {**shared, "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}
