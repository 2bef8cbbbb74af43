"""torch's profiler on single ranks, for one step: every operator and kernel, as a file for Perfetto.

Names of ranks flow in, files flow out on their nodes. None of its errors ends the step: they are told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cluster.ranks.calls import Call, wait_all
from cluster.ranks.usage import BY_DRIVER, CallOrigin
from cluster.ranks.watch import STARTED

BEGIN_S, WRITE_S = 60.0, 120.0
"""Seconds in which ranks must have begun to be profiled, and in which they must have written their files."""


@contextmanager
def profiled(names: Sequence[str], folder: Path, step: int, tell: Callable[[str], None]) -> Iterator[None]:
    """Context of a step in which the ranks of these names (`actor.0`) are profiled; each leaves a file in `folder` on
    its node. `tell`: shows the user a line, about ranks that do not run and about what fails."""

    def ask(deadline_s: float, *, end: bool) -> None:
        # Looked up each time: some may have been replaced.
        there = {f"{rank.identity.role}.{rank.identity.rank}": rank for rank in STARTED.ranks}
        if missing := [name for name in names if name not in there]:
            tell(f"not profiled in step {step}: {', '.join(missing)}; the ranks are {', '.join(there)}")
        ranks = [there[name] for name in names if name in there]
        try:
            origin, answers = CallOrigin(time.time(), BY_DRIVER), []
            for rank in ranks:
                file = folder / f"step-{step:06d}-{rank.identity.role}-{rank.identity.rank}.json.gz"
                answers.append(rank.worker.profile.remote(origin, str(file) if end else None))
            wait_all([Call.of("profile", ranks, answers)], deadline_s)
        except Exception as error:
            tell(f"the profile of step {step} is missing or not whole: {str(error) or type(error).__name__}")

    ask(BEGIN_S, end=False)
    yield
    ask(WRITE_S, end=True)
