"""What is served stays as it is while a run replaces its policy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import TetrarchError
from orchestrator.stages import served_weights, serving, serving_desk
from orchestrator.stages.served_weights import ServedWeights
from orchestrator.stages.serving_desk import Desk
from orchestrator.stages.serving_jobs import Job, PromptRead, Wish
from tests.unit.orchestrator.stages.served import EchoEngines, Letters


def write(actor: Path, text: str) -> None:
    """As a run replaces its policy."""
    partial = actor.with_name("actor.partial")
    (partial / "more").mkdir(parents=True)
    for name in ("weights", "more/tokens"):
        (partial / name).write_text(text)
    shutil.rmtree(actor, ignore_errors=True)
    partial.rename(actor)


def texts(folder: Path) -> set[str]:
    return {path.read_text() for path in (folder / "weights", folder / "more/tokens")}


def test_a_copy_stays_until_the_newer_one_is_loaded(tmp_path: Path) -> None:
    actor, place = tmp_path / "actor", tmp_path / "serve"
    write(actor, "first")
    with ServedWeights(actor, place) as weights:
        first = weights.take()
        assert (first / "weights").stat().st_ino == (actor / "weights").stat().st_ino, "it takes no room"
        write(actor, "second")
        second = weights.take()
        write(actor, "third")
        assert (texts(first), texts(second)) == ({"first"}, {"second"})
        weights.keep_newest()
        assert not first.exists() and texts(second) == {"second"}
    assert list(place.iterdir()) == [] and texts(actor) == {"third"}


def test_a_policy_that_is_replaced_meanwhile_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor, link = tmp_path / "actor", served_weights._link
    write(actor, "first")
    left = ["second"]

    def linked(source: str, target: str) -> None:
        link(source, target)
        if left:
            write(actor, left.pop())

    monkeypatch.setattr(served_weights, "_link", linked)
    monkeypatch.setattr(served_weights, "SETTLED_POLL_S", 0.0)
    with ServedWeights(actor, tmp_path / "serve") as weights:
        assert texts(weights.take()) == {"second"}


def test_a_policy_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served_weights, "REPLACED_S", 0.0)
    with ServedWeights(tmp_path / "actor", tmp_path) as weights, pytest.raises(TetrarchError, match="cannot be read"):
        weights.take()


def test_the_copies_of_a_command_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    """And of none that still serves, also from the same place."""
    actor, place = tmp_path / "actor", tmp_path / "serve"
    write(actor, "first")
    code = "import sys; from pathlib import Path; from orchestrator.stages.served_weights import ServedWeights\n"
    code += "with ServedWeights(*map(Path, sys.argv[1:])) as weights: print(weights.take(), flush=True); input()"
    command = [sys.executable, "-c", code, str(actor), str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with ServedWeights(actor, place) as weights:
            weights.take()
            assert texts(theirs) == {"first"}
        other.kill()
    assert texts(theirs) == {"first"}
    elsewhere = place / "weights-of-another-machine"
    elsewhere.mkdir()
    (elsewhere / "held").write_text("another machine")
    with ServedWeights(actor, place) as weights:
        mine = weights.take()
        assert set(place.iterdir()) == {mine.parent, elsewhere}, "locks may not reach other machines"


def test_engines_are_given_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actor = tmp_path / "actor"
    write(actor, "first")
    orders: Any = SimpleNamespace(told=None, hold=lambda: None, release=lambda: None)
    monkeypatch.setattr(serving, "ORDERS", orders)
    renewed = list[str]()

    class OneTurn:
        version, open, closing, settled = 0, 0, False, True

        def renew(self, folder: str) -> None:
            renewed.append(folder)

        def work(self) -> None:
            self.version, orders.told = 1, KeyboardInterrupt()

        def refuse_all(self, why: Any) -> None: ...

    desk: Any = OneTurn()
    watch: Any = SimpleNamespace(newer=lambda: str(actor))
    with ServedWeights(actor, tmp_path / "serve") as weights:
        old = weights.take()
        serving.work_until_told(desk, watch, weights, 1.0)
        write(actor, "second")
        assert [texts(Path(folder)) for folder in renewed] == [{"first"}] and not old.exists()


def test_a_copy_stays_as_long_as_an_engine_that_is_started_again_loads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if there are newer weights meanwhile, which are served as soon as nothing is under way."""
    actor, engines = tmp_path / "actor", EchoEngines()
    write(actor, "first")
    orders: Any = SimpleNamespace(told=None, hold=lambda: None, release=lambda: None)
    monkeypatch.setattr(serving, "ORDERS", orders)
    monkeypatch.setattr(serving_desk, "IDLE_S", 0.0)
    desk = Desk(engines, None, Letters().decode, most=9)
    there = list[list[str]]()

    def newer() -> str | None:
        there.append(sorted(path.name for path in old.parent.iterdir() if path.is_dir()))
        match len(there):
            case 2:
                desk.take(Job(PromptRead("a", [97]), Wish(1, 9, 1.0), lambda told: None))
            case 4:
                engines.loads_older = False
                engines.gate.set()
            case 8:
                orders.told = KeyboardInterrupt()
        return str(actor) if len(there) in (1, 3) else None

    watch: Any = SimpleNamespace(newer=newer)
    with ServedWeights(actor, tmp_path / "serve") as weights:
        old = weights.take()
        engines.loads_older = True
        engines.gate.clear()
        serving.work_until_told(desk, watch, weights, 1.0)
    assert there[:4] == [["1"], ["1", "2"], ["1", "2"], ["1", "2", "3"]] and there[-1] == ["3"]
    assert [folder for folder, _ in engines.reloaded] == [str(old.with_name(name)) for name in "23"]
    assert ["2"] not in there and ["1", "3"] not in there, "2 was served until then"


def test_weights_that_cannot_be_taken_leave_the_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders: Any = SimpleNamespace(told=None, hold=lambda: None, release=lambda: None)
    monkeypatch.setattr(serving, "ORDERS", orders)

    def work() -> None:
        orders.told = KeyboardInterrupt()

    def take() -> Path:
        raise TetrarchError("the disk is full")

    desk: Any = SimpleNamespace(version=0, open=0, closing=False, work=work, refuse_all=lambda why: None)
    watch: Any = SimpleNamespace(newer=lambda: "actor")
    weights: Any = SimpleNamespace(take=take)
    serving.work_until_told(desk, watch, weights, 1.0)  # `renew` and `keep_newest` are not called: there are none
    assert (
        "the old weights are served on, until they are written once more: the disk is full" in capsys.readouterr().err
    )
