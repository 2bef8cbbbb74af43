"""The modules that ranks import, for the process that they are forked from. Device and environment flow in."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.runtime.fork_server import Imports

MODULES = ("roles.actor", "roles.rollout", "deepspeed")
"""Modules to import. Not vLLM: it imports Ray, which reads environment variables that only a worker has."""
AS_RANKS = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
"""Environment variables that must be set before DeepSpeed is imported, with a rank's values."""


def imports_for(device: str, environment: Mapping[str, str]) -> Imports | None:
    """The modules that every rank imports, with its `environment`; None: nothing is forked.

    With GPUs each rank imports for itself: whether a process that has imported a CUDA build may be forked is untested.
    """
    return Imports(MODULES, {**environment, **AS_RANKS}) if device == "cpu" else None
