"""Going back to an earlier checkpoint because of an alert: an error flows in; where the run goes on, and with what
share of its learning rates, flows out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import RankFailure
from cluster.role_table import ACTOR, CRITIC, row_of
from orchestrator.config.run import RunConfig
from orchestrator.display_text import number
from orchestrator.errors import NotFinite, RollBack
from orchestrator.report import run_files
from orchestrator.report.alert_lines import Alert, WentBack
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.resuming import BEGINNING

DIVERGED = "roles.errors.Diverged"
"""Module and name of the error of a rank whose loss or gradient is not finite."""
DIVERGED_MEANS = (
    "A number that is not finite makes all that is trained on it worthless. Lower the learning rate of the role that "
    "is named."
)


@dataclass(slots=True)
class WayBack:
    """How often a run has gone back; lives as long as the command, through all starts of its roles."""

    config: RunConfig
    last: WentBack | None = None
    """The last time; None: it has never gone back."""
    good: int | None = None
    """The newest step in which no rule that sends the run back had found anything wrong; None: no rule has looked."""

    @property
    def factor(self) -> float:
        """What the learning rates are multiplied by."""
        return self.last.factor if self.last else 1.0

    @property
    def is_left(self) -> bool:
        """Whether the run may go back once more."""
        return self.config.alerts is not None and self._times < self.config.alerts.rollbacks

    @property
    def _times(self) -> int:
        return self.last.times if self.last else 0

    def recall(self, report: Reporter) -> None:
        """Take up what the run's record says, or write there that the run has just gone back."""
        written = [line for line in report.alerts() if "factor" in line]
        if self.last is None and written:
            self.last = WentBack(**written[-1])
        elif self.last is not None and asdict(self.last) not in written:
            report.went_back(self.last)

    def after(self, error: Exception) -> tuple[int, str] | None:
        """The step to go back to (0: the beginning) and the reason; None if `error` must end the run."""
        back = error if isinstance(error, RollBack) else self.diverged(error) if self._heals else None
        if back is None or not self.is_left:
            return None
        assert self.config.alerts is not None
        checkpoints = Checkpoints(Path(self.config.run_dir) / "checkpoints", self.config.checkpoint.keep)
        whole = (step for step in reversed(checkpoints.steps()) if step <= back.good)
        step = next((step for step in whole if checkpoints.of_step(step, content=True)), BEGINNING)
        factor = self.factor * self.config.alerts.factor
        self.last = WentBack(step, back.rule, back.at, factor, self._times + 1)
        where = f"the checkpoint of step {step}" if step else "its beginning"
        told = [] if isinstance(error, RollBack) else [str(back)]
        told.append(
            f"alerts.{back.rule} in step {back.at}: the run goes back to {where} ({self.last.times} of "
            f"{self.config.alerts.rollbacks} times), with {number(factor)} times the learning rates of actor and critic"
        )
        return step, "\n".join(told)

    @property
    def _heals(self) -> bool:
        """Whether a number that is not finite sends the run back."""
        return self.config.alerts is not None and self.config.alerts.not_finite.on_alert == "rollback"

    def alert(self, error: Exception) -> Alert | None:
        """What is told of actor, critic or an engine that has diverged; None for any other error."""
        seen = self.diverged(error)
        if seen is None:
            return None
        action = "rollback" if self._heals and self.is_left else "stop"
        return Alert(seen.at, seen.rule, action, str(seen), DIVERGED_MEANS, seen.good)

    def diverged(self, error: Exception) -> RollBack | None:
        """The way back from actor, critic or an engine that has diverged: smaller rates help no other role."""
        if isinstance(error, RankFailure):
            diverged = error.exception == DIVERGED and {who.role for who in error.blamed} <= {ACTOR, CRITIC}
        else:
            diverged = isinstance(error, NotFinite) and not row_of(error.role).frozen
        if not diverged or self.config.alerts is None:
            return None
        lines = run_files.read_lines(Path(self.config.run_dir) / run_files.METRICS_FILE)
        done = int(lines[-1]["step"]) if lines else 0
        good = done - 1 if self.good is None else min(done - 1, self.good)
        return RollBack(str(error).splitlines()[0], "not_finite", done + 1, max(good, 0))
