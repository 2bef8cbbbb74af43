"""torch's profiler on single ranks, for one step: every operator and kernel, as a file for Perfetto.

Names of ranks flow in, files flow out on their nodes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import ClusterError
from cluster.ranks.calls import Call, wait_all
from cluster.ranks.usage import BY_DRIVER, CallOrigin
from cluster.ranks.watch import STARTED


def check_profiled(names: Sequence[str]) -> None:
    """ClusterError if a name (`actor.0`) is none of a rank that has been started."""
    there = [f"{rank.identity.role}.{rank.identity.rank}" for rank in STARTED.ranks]
    for name in names:
        if name not in there:
            raise ClusterError(f"profile.ranks names {name}, which does not run; the ranks are {', '.join(there)}")


@contextmanager
def profiled(names: Sequence[str], folder: Path, step: int, deadline_s: float) -> Iterator[None]:
    """Context of a step in which the ranks of these names are profiled; each leaves a file in `folder` on its node."""
    ranks = [rank for rank in STARTED.ranks if f"{rank.identity.role}.{rank.identity.rank}" in names]
    files = [str(folder / f"step-{step:06d}-{rank.identity.role}-{rank.identity.rank}.json.gz") for rank in ranks]

    def ask(paths: Sequence[str | None]) -> None:
        origin = CallOrigin(time.time(), BY_DRIVER)
        answers = [rank.worker.profile.remote(origin, path) for rank, path in zip(ranks, paths, strict=True)]
        receipts, refs = [receipt for receipt, _ in answers], [ref for _, ref in answers]
        wait_all([Call("profile", ranks, receipts, refs)], deadline_s)

    ask([None] * len(ranks))
    yield
    ask(files)
