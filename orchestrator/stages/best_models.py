"""The models of the best evaluation so far, in `run_dir/best` while the run goes on and in `run_dir` at its end.

Gold scores flow in; which step's models the run leaves, and why it ends early, flow out.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster.role_table import ACTOR
from orchestrator.config.evaluation import GoldStop
from orchestrator.ppo.gold_stop import GoldScores, best_step, first_that_counts, why_end
from orchestrator.run.checkpoint import BEST, PARTIAL, trained_step
from roles.durable import sync_folder


@dataclass(slots=True)
class BestModels:
    """The section `evaluation.stop` at work."""

    stop: GoldStop
    run_dir: Path
    first: int = 0
    """Evaluations before this step do not count: the models of the best of them are gone."""

    @property
    def folder(self) -> Path:
        """Where models are kept while the run goes on."""
        return self.run_dir / BEST

    @property
    def kept(self) -> int | None:
        """The step of the models that are kept, or that an earlier end of the run has left; None if there are none."""
        found = trained_step(self.folder)
        return trained_step(self.run_dir) if found is None else found

    def best(self, scores: GoldScores) -> int | None:
        """The step of the best evaluation; None without one."""
        return best_step(self._counted(scores))

    def why_end(self, scores: GoldScores) -> str:
        """Why the run ends now; empty: it goes on."""
        return why_end(self._counted(scores), self.stop.patience)

    def resumed(self, scores: GoldScores, step: int) -> str:
        """Find out which evaluations count in a run that goes on at `step`. Returns a message if some do not."""
        self.first = first_that_counts(self._counted(scores), self.kept, step)
        if not self.first:
            return ""
        return (
            f"evaluation.stop: evaluations before step {self.first} do not count, since the models of the best of them "
            "have not been kept"
        )

    def move_to_run_dir(self) -> None:
        """At the end of the run: replace the models in `run_dir`, the actor's last."""
        whole = [folder for folder in self.folder.glob("*") if folder.suffix != PARTIAL]
        for kept in sorted(whole, key=lambda folder: folder.name == ACTOR):
            final = self.run_dir / kept.name
            shutil.rmtree(final, ignore_errors=True)
            kept.rename(final)
            sync_folder(self.run_dir)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _counted(self, scores: GoldScores) -> GoldScores:
        return {step: score for step, score in scores.items() if step >= self.first}
