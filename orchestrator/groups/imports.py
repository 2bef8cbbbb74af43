"""What ranks import, for the process that they are forked from. Device and environment flow in."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.runtime.fork_server import Imports

ALWAYS = ("roles.actor", "roles.rollout")
"""Not vLLM, which imports Ray, and that reads from the environment what only a worker's has."""
WITHOUT_GPU = ("deepspeed",)
"""With GPUs it looks for them while it is imported, which must wait until a rank has its own."""
READ_WITHOUT_GPU = {"DS_ACCELERATOR": "cpu", "TORCHDYNAMO_DISABLE": "1"}
"""As a rank sets them before it imports DeepSpeed."""


def imports_for(device: str, environment: Mapping[str, str]) -> Imports:
    """What every rank imports first; `environment` is what each of them is given."""
    if device == "cuda":
        return Imports(ALWAYS, environment)
    return Imports((*ALWAYS, *WITHOUT_GPU), {**environment, **READ_WITHOUT_GPU})
