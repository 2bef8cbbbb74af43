"""Which ranks are profiled in which steps: the section `profile`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from roles.config.section import Section


class ProfileConfig(Section):
    """torch's profiler on some ranks in some steps; these steps take longer."""

    steps: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    """Numbers of the steps; the first is 1."""
    ranks: list[Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*\.\d+$")]] = Field(min_length=1)
    """Role and number of each rank, such as `actor.0`. It leaves `profile/step-000003-actor-0.json.gz` in `run_dir` on
    its node."""
