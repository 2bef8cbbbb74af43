"""State that a run resumes from: the section `checkpoint`."""

from __future__ import annotations

import math

from pydantic import Field

from roles.config.section import Section


class CheckpointConfig(Section):
    """When checkpoints are written, and how many stay. There is always one after the last step."""

    every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0: only the time decides (`minutes`)."""
    minutes: float | None = Field(default=None, ge=0)
    """A checkpoint is due after the first step that ends this many minutes after the last checkpoint; 0: never. null:
    15 if `every` is 0, else 0."""
    keep: int = Field(default=2, ge=1)
    """Number of whole checkpoints that stay on disk, the newest ones."""

    @property
    def interval_s(self) -> float:
        """Seconds between checkpoints; infinite if none is due by time."""
        minutes = (0.0 if self.every else 15.0) if self.minutes is None else self.minutes
        return 60.0 * minutes or math.inf
