"""Checkpoints that are written while the run goes on: whole or not at all, one at a time, errors told once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import orchestrator.stages.state_writer
from cluster.errors import DeadlineExceeded, RankFailure
from cluster.ranks.calls import Call
from cluster.ranks.identity import Identity
from cluster.ranks.watch import Rank
from cluster.runtime.orders import Orders
from orchestrator.config.loading import load_config
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.stages.state_writer import StateWriter
from roles.text.template_date import DAY
from tests.unit.orchestrator.stages.test_run import TINY, Answer


class Ranks:
    """A group whose state is a text."""

    def __init__(self, role: str) -> None:
        self.text, self.ready, self.error, self.busy = "", True, None, False
        self.copy: tuple[Path, str] = (Path(), "")
        self.ranks = [Rank(Identity(role, number, "node", "log"), None, None) for number in range(2)]
        self.asked: list[Any] = []
        """The answers to the question whether the ranks have written."""

    def call(self, method: Any, folder: str = "") -> Any:
        match method.__name__:
            case "save_state":
                return Answer([self.write(Path(folder), self.text)])
            case "begin_saving":
                self.copy = Path(folder), self.text
                return Call(method.__name__, [], [], [])
            case "written":
                answer = Answer(self.error or [self.write(*self.copy) if self.ready else None, {}])
                answer.ranks, answer.over = self.ranks, not self.busy
                self.asked.append(answer)
                return answer

    def write(self, folder: Path, text: str) -> dict[str, str]:
        folder.mkdir(exist_ok=True)
        (folder / "state").write_text(text)
        return {}


class Case:
    def __init__(self, folder: Path, *overrides: str) -> None:
        config = load_config(TINY, [f"run_dir={folder}", *overrides])
        self.actor, self.critic = Ranks("actor"), Ranks("critic")
        self.checkpoints, self.notes, self.synced = Checkpoints(folder, keep=9), [], 0
        report: Any = SimpleNamespace(note=self.notes.append, sync=self.sync)
        groups: Any = {"actor": self.actor, "critic": self.critic}
        self.writer = StateWriter(config, self.checkpoints, report, lambda: groups, list, orders=Orders())

    def sync(self) -> None:
        self.synced += 1

    def state(self, text: str) -> None:
        self.actor.text, self.critic.text = text, text.upper()

    def ready(self, *, actor: bool, critic: bool) -> None:
        self.actor.ready, self.critic.ready = actor, critic

    def saved(self, step: int) -> tuple[str, str]:
        path = self.checkpoints.of_step(step, content=True).path
        return (path / "actor/state").read_text(), (path / "critic/state").read_text()


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_it_is_there_once_every_rank_has_written_and_holds_what_was_then(case: Case) -> None:
    case.state("first")
    case.ready(actor=False, critic=False)
    case.writer.begin({"step": 2, "kl": 0.1})
    case.state("later")
    for actor, critic in ((False, False), (True, False), (False, True)):
        case.ready(actor=actor, critic=critic)
        case.writer.look()
        assert case.checkpoints.steps() == [] and case.synced == 1
    case.ready(actor=True, critic=True)
    case.writer.look()
    assert case.saved(2) == ("first", "FIRST") and case.checkpoints.newest().state["kl"] == 0.1
    (note,) = case.notes
    assert "of which the run waited" in note and "the newest 2 are kept" in note
    case.writer.look()
    assert case.writer.under_way is None


def test_the_next_one_begins_when_the_one_before_it_is_there(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.state("first")
    case.ready(actor=True, critic=False)
    case.writer.begin({"step": 2})
    case.state("second")
    seen: list[list[int]] = []

    def sleep(seconds: float) -> None:
        seen.append(case.checkpoints.steps())
        case.ready(actor=True, critic=len(seen) == 3)

    its_time = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)  # other threads sleep as they did
    monkeypatch.setattr("orchestrator.stages.state_writer.time", its_time)
    case.writer.begin({"step": 3})
    assert seen == [[], [], []] and case.checkpoints.steps() == [2] and case.saved(2) == ("first", "FIRST")
    case.writer.complete()
    assert case.checkpoints.steps() == [2, 3] and case.saved(3) == ("second", "SECOND")


def test_one_that_is_written_at_once_waits_for_the_one_under_way(case: Case) -> None:
    case.state("first")
    case.writer.begin({"step": 2})
    case.state("second")
    case.writer.write({"step": 3})
    assert case.saved(2) == ("first", "FIRST") and case.saved(3) == ("second", "SECOND")


def test_an_error_of_a_rank_is_told_once_and_the_one_before_stays(case: Case) -> None:
    case.state("first")
    case.writer.write({"step": 1})
    case.writer.begin({"step": 2})
    case.critic.error = RankFailure("critic rank 1: no space left on device")
    with pytest.raises(RankFailure, match="no space left"):
        case.writer.look()
    case.critic.error = None
    case.writer.complete()
    assert case.checkpoints.steps() == [1]
    case.writer.write({"step": 2})
    assert case.checkpoints.steps() == [1, 2]
    assert not list(case.checkpoints.folder.glob("*.partial"))


@pytest.mark.parametrize("how", ["look", "complete"])
def test_what_is_not_written_in_time_ends_the_run(tmp_path: Path, how: str) -> None:
    case = Case(tmp_path, "deadlines.save_s=600")
    case.ready(actor=True, critic=False)
    case.writer.begin({"step": 2})
    case.writer.look()
    case.writer.under_way.until = 0.0
    told = r"checkpoint 2 was not written within 600 s.*deadlines\.save_s"
    with pytest.raises(DeadlineExceeded, match=told) as late:
        getattr(case.writer, how)()
    assert "by critic rank 0 (node node); look at the disk of run_dir" in str(late.value)
    assert list(late.value.blamed) == [case.critic.ranks[0].identity]
    case.writer.look()
    assert case.checkpoints.steps() == []


def test_ranks_that_were_busy_beyond_the_deadline_are_asked_again(case: Case) -> None:
    """What they said before their update is old after it."""
    case.ready(actor=True, critic=False)
    case.critic.busy = True
    case.writer.begin({"step": 2})
    case.writer.look()
    case.writer.look()
    (before,) = case.critic.asked
    case.writer.under_way.until, before.over = time.monotonic(), True
    case.writer.look()
    case.ready(actor=True, critic=True)
    case.critic.busy = False
    case.writer.look()
    assert case.checkpoints.steps() == [2] and len(case.critic.asked) == 2


def test_ranks_that_do_not_answer_end_the_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.stages.state_writer.CONTROL_S", 0.0)
    case.actor.busy = True
    case.writer.begin({"step": 2})
    case.writer.under_way.until = 0.0
    with pytest.raises(DeadlineExceeded, match=r"by actor rank 0 \(node node\), actor rank 1"):
        case.writer.complete()


def test_killed_meanwhile_the_last_whole_one_is_the_newest(case: Case) -> None:
    case.state("first")
    case.writer.write({"step": 1})
    case.ready(actor=True, critic=False)
    case.writer.begin({"step": 2})
    case.writer.look()
    again = Case(case.checkpoints.folder)
    assert again.checkpoints.newest(content=True).step == 1 and again.checkpoints.damaged() == {}
    again.state("again")
    again.writer.write({"step": 2})
    assert again.saved(2) == ("again", "AGAIN")


def test_it_holds_the_same_as_one_that_is_written_at_once(tmp_path: Path) -> None:
    files = []
    for name in ("write", "begin"):
        case = Case(tmp_path / name)
        case.state("same")
        getattr(case.writer, name)({"step": 2})
        case.writer.complete()
        files.append((case.checkpoints.newest().path / "manifest.json").read_bytes())
    assert files[0] == files[1]


def test_a_run_that_was_taken_over_commits_nothing(case: Case) -> None:
    case.writer.begin({"step": 2})

    def taken() -> None:
        raise RankFailure("taken over")

    case.writer.check_lock = taken
    with pytest.raises(RankFailure, match="taken over"):
        case.writer.look()
    assert case.checkpoints.steps() == []


def test_the_driver_s_part_of_a_checkpoint_has_the_same_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, seen = Case(tmp_path, "deadlines.save_s=9"), list[tuple[float, str]]()

    @contextmanager
    def at_most(seconds: float, doing: str) -> Iterator[None]:
        seen.append((seconds, doing))
        yield

    monkeypatch.setattr("orchestrator.stages.state_writer.at_most", at_most)
    case.writer.write({"step": 2})
    assert seen == [(9.0, "writing checkpoint 2")] * 2


def test_a_checkpoint_has_the_day_that_chat_templates_write(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DAY, "2026-01-31")
    case.writer.write({"step": 2})
    assert case.checkpoints.newest().state[DAY] == "2026-01-31"


def test_models_on_a_disk_that_does_not_answer_are_not_waited_for_without_end(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr(orchestrator.stages.state_writer.time, "monotonic", lambda: now[0])

    def wait(within_s: float) -> bool:
        now[0] += 100.0
        return False

    case.writer.models = SimpleNamespace(wait=wait, known=lambda: {"actor": {"config.json": "hash"}})  # type: ignore[assignment]
    case.writer.write({"step": 2})
    assert case.checkpoints.newest().state["models"] == {"actor": {"config.json": "hash"}}
    assert case.notes[0].startswith("checkpoint 2 lacks the hashes of models that were not read yet")
