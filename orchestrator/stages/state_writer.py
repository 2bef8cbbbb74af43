"""Writes the checkpoints of a run: at once, or while the run goes on (`checkpoint.asynchronous`).

The driver's state flows in; whole checkpoints flow out. Every rank of a trained group writes its own files. Where the
run goes on, a rank only copies its state before it answers; its thread writes the copy, and the driver asks between the
phases of a step whether all ranks have done so. Only then is the checkpoint renamed. There is one under way at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import DeadlineExceeded
from cluster.ranks.calls import CONTROL_S, Call, wait_all
from cluster.ranks.identity import Identity
from cluster.ranks.role_group import RoleGroup
from cluster.runtime.last_resort import at_most
from cluster.runtime.orders import ORDERS, Orders
from orchestrator.config.base import BaseConfig
from orchestrator.report.reporter import Reporter
from orchestrator.run.checkpoint import MODELS, Checkpoints, size_gib
from orchestrator.run.model_contents import Contents, ContentsMeanwhile
from orchestrator.stages.stage import Trainable
from roles.text.template_date import kept_day

Hashes = dict[str, str]
"""Path → hash of files."""
ASKED_EVERY_S = 0.02
"""Seconds between two questions whether all ranks have written."""


@dataclass(slots=True)
class UnderWay:
    """A checkpoint that the ranks write."""

    state: dict[str, Any]
    """The driver's."""
    until: float
    """When it must be written, on the monotonic clock."""
    began: float
    copied_s: float
    calls: dict[str, Call[Hashes | None]] = field(default_factory=dict)
    """Role → the running question whether its ranks have written."""
    asked: float = 0.0
    """When that was asked."""


@dataclass(slots=True)
class StateWriter:
    """Writes the driver's state and that of the trained groups."""

    config: BaseConfig
    checkpoints: Checkpoints
    report: Reporter
    trained: Callable[[], Mapping[str, RoleGroup[Any]]]
    """Role → group of `Trainable` ranks."""
    best: Callable[[], Sequence[int]]
    """Steps whose checkpoints stay."""
    settings: str = ""
    """The configuration as YAML without secrets, a part of each checkpoint."""
    orders: Orders = ORDERS
    check_lock: Callable[[], None] = lambda: None
    """Raises TetrarchError where another run writes to `run_dir`."""
    models: ContentsMeanwhile | None = None
    """What the models consist of from which the run has started; None: it is not kept."""
    under_way: UnderWay | None = None
    saved_at: float = field(default_factory=time.monotonic)
    """When the last checkpoint was asked for, or the run began, on the monotonic clock."""
    cost_told: bool = False

    def due(self, step: int) -> bool:
        """Whether a checkpoint is due after the step that has ended."""
        config = self.config.checkpoint
        by_step = config.every > 0 and step % config.every == 0
        return by_step or time.monotonic() - self.saved_at >= config.interval_s

    def write(self, state: dict[str, Any]) -> Path:
        """Write a checkpoint, and wait for it."""
        self.complete()
        began, folder = self._begin(state)
        calls = self._call(Trainable.save_state, folder)
        path = self._commit(state, self._hashes(calls), began, "")
        self.saved_at = time.monotonic()
        return path

    def begin(self, state: dict[str, Any]) -> None:
        """Have every rank copy its state, and write the copy while the run goes on; first wait for the checkpoint
        before it."""
        self.complete()
        began, folder = self._begin(state)
        self._hashes(self._call(Trainable.begin_saving, folder))
        self.saved_at = now = time.monotonic()
        self.under_way = UnderWay(state, now + self.config.deadlines.save_s, began, now - began)

    def look(self) -> None:
        """Commit the checkpoint under way if every rank has written it. A rank's error is raised here. Does not
        wait."""
        saving = self.under_way
        if saving is None:
            return
        if not saving.calls:
            saving.asked = time.monotonic()
            saving.calls = {role: group.call(Trainable.written) for role, group in self.trained().items()}
        if all(call.over for call in saving.calls.values()):
            self._collect(saving)
        elif time.monotonic() > max(saving.until, saving.asked + CONTROL_S):
            unheard = [call.ranks for call in saving.calls.values() if not call.over]
            self._give_up(saving, [rank.identity for ranks in unheard for rank in ranks])

    def complete(self) -> None:
        """Wait until the checkpoint under way, if any, is committed; at most until its deadline."""
        while self.under_way is not None:
            self.look()
            if self.under_way is not None:
                time.sleep(ASKED_EVERY_S)

    def _collect(self, saving: UnderWay) -> None:
        calls, saving.calls, self.under_way = saving.calls, {}, None  # an error ends it
        answers = {role: call.result(self._deadline_s) for role, call in calls.items()}
        if any(hashes is None for ranks in answers.values() for hashes in ranks):
            self.under_way = saving
            if saving.asked > saving.until:  # what was asked before may be old: the ranks may have been busy since
                asked = [(rank, role, number) for role in answers for number, rank in enumerate(calls[role].ranks)]
                self._give_up(saving, [rank.identity for rank, role, number in asked if answers[role][number] is None])
            return
        written = {role: [hashes or {} for hashes in ranks] for role, ranks in answers.items()}
        self._commit(
            saving.state, _by_path(written), saving.began, f", of which the run waited {saving.copied_s:.1f} s"
        )

    def _give_up(self, saving: UnderWay, late: Sequence[Identity]) -> None:
        self.under_way = None
        raise DeadlineExceeded(
            f"checkpoint {saving.state['step']} was not written within {self.config.deadlines.save_s:g} s by "
            f"{', '.join(map(str, late))}; look at the disk of run_dir, or raise deadlines.save_s",
            late,
        )

    @property
    def _deadline_s(self) -> float:
        return min(self.config.deadlines.save_s, self.orders.left_s)

    def _begin(self, state: dict[str, Any]) -> tuple[float, Path]:
        self.check_lock()
        self.report.sync()  # a checkpoint never knows of more than the files
        with self._on_disk(state):
            return time.monotonic(), self.checkpoints.begin(state["step"])

    def _on_disk(self, state: dict[str, Any]) -> AbstractContextManager[None]:
        return at_most(self.config.deadlines.save_s, f"writing checkpoint {state['step']}")

    def _call(self, method: Callable[..., Any], folder: Path) -> dict[str, Call[Hashes]]:
        return {role: group.call(method, str(folder / role)) for role, group in self.trained().items()}

    def _hashes(self, calls: Mapping[str, Call[Hashes]]) -> Hashes:
        deadline_s = self._deadline_s
        wait_all(list(calls.values()), deadline_s)
        return _by_path({role: call.result(deadline_s) for role, call in calls.items()})

    def _commit(self, state: dict[str, Any], hashes: Hashes, began: float, more: str) -> Path:
        self.check_lock()
        state = {**state, "config": self.settings, MODELS: self._contents(state["step"]), **kept_day()}
        with self._on_disk(state):
            path = self.checkpoints.commit(state["step"], state, hashes, self.best())
        if not self.cost_told:
            cost = f"{time.monotonic() - began:.1f} s{more}, {size_gib(path):.2f} GiB"
            self.report.note(f"a checkpoint: {cost}; {self.config.checkpoint.kept}")
            self.cost_told = True
        return path

    def _contents(self, step: int) -> Contents:
        """What the models consist of; of large ones on a slow disk what is known once the run is asked to end, or after
        the deadline."""
        if self.models is None:
            return {}
        until = time.monotonic() + self.config.deadlines.save_s
        while not (whole := self.models.wait(ASKED_EVERY_S)):
            if self.orders.told is not None or time.monotonic() > until:
                break
        if not whole:
            lacks = "lacks the hashes of models that were not read yet"
            self.report.note(f"checkpoint {step} {lacks}: --resume from it does not compare their files")
        return self.models.known()


def _by_path(answers: Mapping[str, Sequence[Hashes]]) -> Hashes:
    """Path in the checkpoint → hash, of what the ranks of each role have written in the role's folder."""
    ranks = ((role, hashes) for role, all_ranks in answers.items() for hashes in all_ranks)
    return {f"{role}/{name}": found for role, hashes in ranks for name, found in (hashes or {}).items()}
