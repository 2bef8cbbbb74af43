"""Processes that are forked from one that has imported torch, transformers and the roles: they start in 0.01 s of CPU
instead of 4 s."""

from __future__ import annotations

import os
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from unittest.mock import patch


def forking() -> ForkServerContext:
    """A context whose processes have one thread, and have imported what all of them need.

    Not vLLM and DeepSpeed: they read at import what a role puts into the environment of its process. That environment
    begins as it was when the first one was started.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.integration.sharded_cases", "roles.rollout"])
    with patch.dict(os.environ, OMP_NUM_THREADS="1"):  # read when torch is imported
        forkserver.ensure_running()
    return context
