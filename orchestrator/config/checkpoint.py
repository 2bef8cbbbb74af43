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
    asynchronous: bool = False
    """The run goes on while a checkpoint is written: every rank copies its state to host memory first (12 bytes per
    trained number, shared by the role's ranks; the plan counts them), and a thread writes the copy. One checkpoint at
    a time. A run that is killed meanwhile goes on from the checkpoint before."""
    keep: int = Field(default=2, ge=1)
    """Number of whole checkpoints that stay on disk, the newest ones."""
    keep_every: int = Field(default=0, ge=0)
    """Checkpoints whose step is a multiple of this stay too; 0: none does."""
    keep_best: int = Field(default=0, ge=0)
    """Number of checkpoints that stay too because of their evaluation: those of the highest gold score, without a judge
    of the highest proxy score; of `tetrarch sft` and `dpo` those of the lowest held-out loss, of `tetrarch reward` of
    the highest held-out accuracy. A checkpoint is written after each evaluation that is one of them. 0: none stays."""

    save_hf_every: int = Field(default=0, ge=0)
    """Steps between Hugging Face folders of the trained models in `run_dir/hf/step-000010/actor` and so on, which all
    stay; 0: there is none before the end of the run. `tetrarch export` makes one of any checkpoint."""

    def leaves_models(self, step: int) -> bool:
        """Whether `save_hf_every` wants the models of a step."""
        return self.save_hf_every > 0 and step % self.save_hf_every == 0

    @property
    def kept(self) -> str:
        """Which checkpoints stay, such as `the newest 2 are kept, and those of every 10 steps`."""
        also = [f"those of every {self.keep_every} steps"] if self.keep_every else []
        also += [f"the best {self.keep_best} by their evaluation"] if self.keep_best else []
        return ", and ".join([f"the newest {self.keep} are kept", *also])

    @property
    def interval_s(self) -> float:
        """Seconds between checkpoints; infinite if none is due by time."""
        minutes = (0.0 if self.every else 15.0) if self.minutes is None else self.minutes
        return 60.0 * minutes or math.inf
