"""What ranks import, for the process that they are forked from. Device and environment flow in."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.runtime.fork_server import Imports

MODULES = ("roles.actor", "roles.rollout", "deepspeed")
"""Not vLLM, which imports Ray, and that reads from the environment what only a worker's has."""
AS_RANKS = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
"""Set before DeepSpeed is imported, as a rank sets them."""


def imports_for(device: str, environment: Mapping[str, str]) -> Imports | None:
    """What every rank imports first, in the `environment` that each of them is given; None: nothing is forked.

    With GPUs each rank imports for itself: whether a process that has imported a CUDA build may be forked is untested.
    """
    return Imports(MODULES, {**environment, **AS_RANKS}) if device == "cpu" else None
