"""The file of the timeline opens at any time, whatever ends the run; and is what Perfetto reads."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.ranks.card_use import CardSample, CardUse
from cluster.ranks.identity import Identity
from cluster.ranks.usage import CallOrigin, InnerSpan, RankCall, RankUsage
from orchestrator.commands import app as cli
from orchestrator.report.reporter import Reporter
from orchestrator.timeline.part_of_run import PartOfRun
from orchestrator.timeline.recorded_steps import recorded_steps
from orchestrator.timeline.trace_file import TRACE_FILE, TraceFile, parts_until, read_trace

ACTOR, ENGINE = Identity("actor", 0, "here", "log"), Identity("rollout", 0, "there", "log")
MAIN, OTHER = 1, 2


def part(step: int, began: float | None = None) -> PartOfRun:
    """A step of ten seconds; on the engine two turns of an environment overlap."""
    at = 1000.0 + 20 * step if began is None else began
    engine = [
        RankCall(at, at + 4, "stream", CallOrigin(at, "")),
        RankCall(at + 4, at + 5, "stream", CallOrigin(at, "")),
    ]
    engine.append(RankCall(at + 9, at + 9.5, "update_weights", CallOrigin(at + 8.9, "actor 0")))
    actor = [
        RankCall(at + 5, at + 8, "update", CallOrigin(at + 5, "")),
        RankCall(at + 8, at + 10, "push", CallOrigin(at + 8, "")),
    ]
    turns = [InnerSpan(at + 1, at + 3, "environment turn", OTHER, {"row": 0}), InnerSpan(at + 2, at + 4, "turn", 3, {})]
    counts = [InnerSpan(at + n / 8, at + n / 8, "generated tokens", MAIN, {"value": 10.0 * n}) for n in range(32)]
    passes = [InnerSpan(at + 5, at + 6, "forward", MAIN, {}), InnerSpan(at + 6, at + 8, "backward", MAIN, {})]
    cards = CardUse("H100", [CardSample(at + n / 100, 2**30 * n, 0.5) for n in range(1000)], 1, 1)
    phases = [("generate", at, at + 5), ("update", at + 5, at + 8), ("push", at + 8, at + 10)]
    waits = [InnerSpan(at + 0.1, at + 4.9, "waits for rollout", MAIN, {"last": "rollout 0"})]
    ranks = [
        (ENGINE, RankUsage(1, engine, {int(at): 2**30}, None, [*turns, *counts], MAIN)),
        (ACTOR, RankUsage(2, actor, {}, cards, passes, MAIN)),
    ]
    return PartOfRun(step, at, at + 10, phases, waits, ranks)


def reporter(folder: Path, **options: Any) -> Reporter:
    return Reporter(folder, name="x", config_yaml="", tensorboard=False, html=False, trace=True, **options)


def events_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))
    return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with reporter(tmp_path, steps=3) as report:
        report.status("starting the roles")
        for step in (1, 2, 3):
            report.phase("generate")
            report.timeline(part(step))
    return tmp_path / TRACE_FILE


def test_the_file_follows_the_rules_of_the_format(file: Path) -> None:
    events = events_of(file)
    assert {event["ph"] for event in events} == {"M", "X", "s", "f", "C"}
    named = {(e["pid"], e["tid"]) for e in events if e["name"] == "thread_name"}
    processes = [e["pid"] for e in events if e["name"] == "process_name"]
    assert len(named) == len([e for e in events if e["name"] == "thread_name"]) and len(set(processes)) == 3
    lanes: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for event in events:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and event["name"]
        if event["ph"] == "X":
            assert isinstance(event["ts"], int) and event["dur"] >= 0 and (event["pid"], event["tid"]) in named
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for spans in lanes.values():
        stack: list[tuple[int, int]] = []
        for begin, end in sorted(spans, key=lambda span: (span[0], -span[1])):
            while stack and stack[-1][1] <= begin:
                stack.pop()
            assert not stack or end <= stack[-1][1], "spans of one lane lie in one another, or beside"
            stack.append((begin, end))
    for flow in {e["id"] for e in events if e["ph"] == "s"}:
        source, target = sorted((e for e in events if e.get("id") == flow), key=lambda e: e["ph"], reverse=True)
        assert (source["ph"], target["ph"], target["bp"]) == ("s", "f", "e") and source["ts"] <= target["ts"]
        for end in (source, target):
            assert any(a <= end["ts"] <= b for a, b in lanes[end["pid"], end["tid"]]), "an arrow begins on a span"


def test_who_is_drawn_with_what(file: Path) -> None:
    events = events_of(file)
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    drawn = defaultdict(set)
    for event in events:
        if event["ph"] == "X":
            drawn[lanes[event["pid"], event["tid"]]].add(event["name"])
    assert drawn == {
        "driver": {"starting the roles", "generate", "update", "push", "waits for rollout"},
        "rollout 0": {"rollout stream", "rollout update_weights", "waits for actor"},
        "rollout 0, beside it 1": {"environment turn"},
        "rollout 0, beside it 2": {"turn"},
        "actor 0": {"actor update", "actor push", "forward", "backward", "waits for rollout"},
    }
    arrows = [(lanes[e["pid"], e["tid"]], e["name"]) for e in events if e["ph"] == "s" and e["ts"] < 1031 * 10**6]
    assert sorted(arrows) == [
        ("actor 0", "update_weights"),
        ("driver", "push"),
        ("driver", "stream"),
        ("driver", "update"),
    ]
    curves = {e["name"] for e in events if e["ph"] == "C"}
    assert curves == {
        *("rollout 0 host memory GiB", "rollout 0 generated tokens", "rollout 0 generated tokens/s"),
        *("actor 0 GPU memory GiB", "actor 0 GPU utilisation"),
    }
    memory = [e["args"]["value"] for e in events if e["name"] == "actor 0 GPU memory GiB"]
    assert len(memory) <= 3 * 300 and max(memory) == 999, "of many points the highest ones stay"
    rates = [e["args"]["value"] for e in events if e["name"] == "rollout 0 generated tokens/s"]
    assert rates and rates == pytest.approx([80.0] * len(rates))


def test_the_spans_of_a_rank_add_up_to_the_step(file: Path) -> None:
    for step in read_trace(file):
        head, sums = step[0]["args"], defaultdict(int)
        for event in step:
            if event["ph"] == "X" and event["cat"] in ("call", "idle"):
                sums[event["pid"], event["tid"]] += event["dur"]
        assert len(sums) == 2
        for total in sums.values():
            assert total == pytest.approx(1e6 * (head["ended"] - head["began"]), rel=0.02)


@pytest.mark.skipif(shutil.which("gzip") is None, reason="no gzip here")
def test_other_programs_open_it(file: Path) -> None:
    subprocess.run(["gzip", "-t", str(file)], check=True)


@pytest.mark.parametrize("lost", [1, 9, 200, 1500])
def test_a_run_that_is_killed_while_it_writes_leaves_the_steps_before(file: Path, lost: int) -> None:
    file.write_bytes(file.read_bytes()[:-lost])
    steps = [course.step for course in recorded_steps(file.parent)]
    assert steps == [1, 2, 3][: len(steps)] and len(steps) >= (2 if lost < 1000 else 1)


def test_a_resumed_run_goes_on_behind_the_steps_that_count(file: Path) -> None:
    with reporter(file.parent, steps=3, resume_step=2) as report:
        report.timeline(part(3, began=5000.0))
    assert [(course.step, course.began) for course in recorded_steps(file.parent)] == [(1, 1020), (2, 1040), (3, 5000)]
    lanes = [(e["pid"], e["args"]["name"]) for e in events_of(file) if e["name"] == "thread_name"]
    assert len(lanes) == len(set(lanes)) == 5, "a rank keeps its lane"
    starts = [e["id"] for e in events_of(file) if e["ph"] == "s"]
    assert len(starts) == len(set(starts)), "an arrow's number is its own"


def test_a_new_run_begins_anew(file: Path) -> None:
    with reporter(file.parent, steps=3) as report:
        report.timeline(part(1))
    assert [course.step for course in recorded_steps(file.parent)] == [1]


def test_what_is_no_timeline_is_said(tmp_path: Path) -> None:
    for content in (
        b"",
        b"no gzip",
        gzip.compress(b"no json\n"),
        gzip.compress(b"[1,\n2]\n"),
        gzip.compress(b"[\n]\n"),
    ):
        (tmp_path / TRACE_FILE).write_bytes(content)
        with pytest.raises(ValueError, match=r"trace\.json\.gz"):
            recorded_steps(tmp_path)
    (tmp_path / TRACE_FILE).unlink()
    with pytest.raises(ValueError, match=r"has no trace\.json\.gz.*report\.trace"):
        recorded_steps(tmp_path)
    assert list(parts_until(tmp_path / TRACE_FILE, 3)) == []


@pytest.mark.parametrize("damage", ["head", "middle", "text", "events"])
def test_a_damaged_file_stops_no_run(file: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = file.read_bytes()
    lines = gzip.decompress(whole).split(b"\n")
    broken = {
        "head": b"no gzip",
        "middle": whole[: len(whole) // 2] + bytes(64) + whole[len(whole) // 2 + 64 :],
        "text": gzip.compress(b"\n".join([*lines[: len(lines) // 2], b"no json", *lines[len(lines) // 2 :]])),
        "events": gzip.compress(b'[\n{"ph":"M","name":"part"},\n'),
    }[damage]
    file.write_bytes(broken)
    with reporter(file.parent, steps=4, resume_step=3) as report:
        report.timeline(part(4))
    steps = [course.step for course in recorded_steps(file.parent)]
    assert steps[-1] == 4 and steps == sorted(set(steps))
    assert events_of(file)[-1]["name"] == "end"
    if damage != "middle":  # as a killed run leaves it
        assert "the rest could not be read and is in" in "".join(capsys.readouterr())
        assert (file.parent / "trace.json.gz.damaged").read_bytes() == broken


def test_the_steps_before_the_damage_are_read(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-6] ^= 1  # of the checksum
    file.write_bytes(data)
    assert [course.step for course in recorded_steps(file.parent)][:2] == [1, 2]
    with reporter(file.parent, steps=3, resume_step=2) as report:
        report.timeline(part(3))
    assert [course.step for course in recorded_steps(file.parent)] == [1, 2, 3]


class Failing:
    """A file that takes little at a time, and fails where it is told to."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        took = self.file.write(bytes(data[: min(100, self.room)]))
        self.room -= took
        return int(took)


def test_a_part_that_cannot_be_written_leaves_those_before_it(tmp_path: Path) -> None:
    events = [{"ph": "C", "name": f"{random.random()}", "pid": 0, "tid": 0, "ts": 1, "args": {}} for _ in range(99)]
    written = TraceFile(tmp_path / "t.gz", [events])
    written._file = Failing(written._file, 10**6)
    written.append(events)
    assert len(events_of(tmp_path / "t.gz")) == 2 * 99 + 1, "short writes are gone on with"
    kept = Failing(written._file.file, 500)
    written._file = kept
    with pytest.raises(OSError, match="No space"):
        written.append(events)
    kept.room = 10**6
    written.append(events[:1])
    assert len(events_of(tmp_path / "t.gz")) == 2 * 99 + 1 + 1


def test_a_timeline_that_fails_is_told_once_and_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("orchestrator.timeline.diary.part_events", lambda part, lanes: 1 / 0)
    with reporter(tmp_path, steps=3) as report:
        for step in (1, 2, 3):
            report.timeline(part(step))
            report.complete()
    assert "".join(capsys.readouterr()).count("the run goes on without it") == 1
    monkeypatch.setattr(TraceFile, "__init__", lambda *_: 1 / 0)
    with reporter(tmp_path, steps=3) as report:
        report.timeline(part(1))
        report.complete()


def test_the_command_shows_where_the_time_went(file: Path) -> None:
    shown = CliRunner().invoke(cli.app, ["trace", str(file.parent), "--step", "2"])
    assert shown.exit_code == 0, shown.output
    assert "step 2: 10.00 s (3 steps, median 10.00 s)" in shown.output
    assert "rollout  55%   actor 45%" in shown.output and "actor    50%   rollout 50%" in shown.output
    assert "rollout stream  5.00 s  50 %" in shown.output
    numbers = json.loads(CliRunner().invoke(cli.app, ["trace", str(file.parent), "--json"]).output)
    assert numbers["gains"] == pytest.approx(
        {"rollout stream": 5, "actor update": 3, "actor push": 2, "driver": 0}, abs=1e-3
    )
    assert [link["who"] for link in numbers["critical_path"]] == ["rollout 0", "actor 0", "actor 0"]
    assert "the timeline goes up to" not in shown.output
    (file.parent / "metrics.jsonl").write_text('{"step": 3}\n{"step": 7}\n')
    shown = CliRunner().invoke(cli.app, ["trace", str(file.parent)])
    assert "the timeline goes up to step 3, and the run has done 7" in shown.output
    wrong = CliRunner().invoke(cli.app, ["trace", str(file.parent), "--step", "9"])
    assert wrong.exit_code == 2 and "1 to 3" in wrong.output


def test_many_steps_are_appended_in_the_same_time_each(tmp_path: Path) -> None:
    random.seed(0)
    events = [
        {"ph": "C", "name": "x", "pid": 0, "tid": 0, "ts": n, "args": {"value": random.random()}} for n in range(99)
    ]
    written, took = TraceFile(tmp_path / "t.gz"), []
    for _ in range(200):
        began = time.process_time()
        written.append(events)
        took.append(time.process_time() - began)
    written.close()
    assert len(events_of(tmp_path / "t.gz")) == 200 * 99 + 1
    assert sum(took[100:]) < 3 * sum(took[:100])
