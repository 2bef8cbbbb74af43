from __future__ import annotations

import io
import math
import re
import sys
import time

import pytest
from rich.console import Console

from orchestrator.display_text import (
    decimal_text,
    decimals_of,
    duration,
    number,
    percent,
    printable,
    sparkline,
)
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.progress import LiveProgress, PlainProgress, make_progress
from orchestrator.report.terminal_lines import _with_error, evaluation_lines, sample_lines, step_line, step_sample

STEP = {
    "score/mean": 0.4123,
    "score/std": 0.98,
    "objective/kl": 2.81,
    "objective/entropy": 1.934,
    "response/length_mean": 61.24,
    "response/truncated_fraction": 0.125,
    "policy/clip_fraction": 0.081,
    "value/explained_variance": 0.44,
    "time/step_s": 8.44,
}


def result(label: str, score: float, response: str = "fine") -> EvaluationResult:
    return EvaluationResult(
        step=0,
        label=label,
        prompts=3,
        proxy=Estimate(score, 0.1),
        gold=Estimate(score, 0.1),
        kl=Estimate(1.0, 0.1),
        length=Estimate(20.0, 1.0),
        truncated_fraction=0.5,
        samples=[SampleRow("ask", response, score, score, 1.0, False)],
        proxy_values=[score - 0.1, score, score + 0.1],
        gold_values=[score - 0.1, score, score + 0.1001],
    )


def plain(stream: io.StringIO, heartbeat_s: float = 30.0) -> PlainProgress:
    return PlainProgress("smoke", 40, 0, stream=stream, heartbeat_s=heartbeat_s)


def test_a_step_is_one_line() -> None:
    line = step_line(3, 40, STEP, 312.0)
    assert line == (
        "step  3/40  score +0.412 (sd 0.980)  KL 2.81 healthy  entropy 1.93  "
        "length 61.2  truncated 12%  8.4 s  ETA 5:12"
    )


def test_what_was_not_measured_is_left_out() -> None:
    assert step_line(40, 40, {"score/mean": -1.0}, 0.0) == "step 40/40  score -1.000"


def test_what_is_rounded_to_zero_has_no_minus() -> None:
    line = step_line(1, 2, {"score/mean": -1e-4, "objective/kl": -1e-4}, math.nan)
    assert "score +0.000" in line and "KL 0.00 " in line
    assert "(proxy +0.00, KL 0.0)" in step_sample(1, SampleRow("a", "b", -0.001, None, -0.01, True), 80)
    assert decimal_text(-0.004, 2) == "0.00"
    assert _with_error(-0.0002, 0.01) == "+0.000 ±0.010" and _with_error(-0.0002, math.nan) == "+0.000"


def test_a_number_that_is_none_is_shown() -> None:
    line = step_line(1, 2, {"objective/kl": math.nan, "value/loss": math.inf}, math.nan)
    assert "KL nan " in line
    assert line.endswith("NOT FINITE: objective/kl, value/loss")


def test_plain_status_is_printed_at_once_and_phases_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    stream = io.StringIO()
    progress = plain(stream)
    progress.status("starting actors")
    progress.phase("step 1: scoring")
    progress.close()
    assert stream.getvalue() == "[    0 s] smoke: 40 steps\n[    0 s] starting actors\n"


def until_told(stream: io.StringIO, text: str) -> None:
    """Wait for what the thread of the heartbeat prints."""
    deadline = time.monotonic() + 60
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_a_long_wait_has_a_heartbeat_that_names_the_phase() -> None:
    stream = io.StringIO()
    progress = plain(stream, heartbeat_s=0.02)
    progress.status("starting actors")
    progress.phase("step 1: scoring")
    until_told(stream, "still step 1: scoring")
    progress.close()
    assert re.search(r"… still step 1: scoring, \d+ s", stream.getvalue())


def test_a_heartbeat_prints_nothing_of_a_log_that_drives_the_terminal() -> None:
    stream = io.StringIO()
    progress = plain(stream, heartbeat_s=0.02)
    progress.status("starting actors")
    progress.starting({"actor": "loads \x1b[2Jweights"})
    until_told(stream, "weights")
    progress.close()
    assert "actor loads \ufffd[2Jweights" in stream.getvalue()


def test_a_display_that_fails_says_so_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    progress = LiveProgress("smoke", 4, 0, Console(file=out, force_terminal=True, width=80, height=20))
    monkeypatch.setattr(LiveProgress, "_content", lambda self: 1 / 0)
    progress.lines("a line")
    progress.close()
    assert "a line" in out.getvalue() and "the display failed: ZeroDivisionError" in out.getvalue()


def test_a_stream_without_unicode_does_not_end_the_run() -> None:
    raw = io.BytesIO()
    progress = PlainProgress("smoke", 1, 0, stream=io.TextIOWrapper(raw, encoding="ascii"))
    progress.lines("… ±1 grüße")
    progress.close()
    assert b"? ?1 gr??e" in raw.getvalue()


def test_time_left_is_measured_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    progress = plain(stream)
    now = 1050.0
    progress.step(1, {"time/step_s": 10.0})
    now = 1070.0  # an evaluation came between
    progress.step(2, {"time/step_s": 10.0})
    progress.close()
    assert "10.0 s  ETA 6:30" in stream.getvalue()
    assert "10.0 s  ETA 9:30" in stream.getvalue()


@pytest.mark.parametrize("width", [20, 50, 80, 200])
def test_the_live_display_fits_its_terminal(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, height=30, force_terminal=True)
    progress = LiveProgress("a-run-with-quite-a-long-name-of-its-own", 40, 0, console)
    progress.status("starting actors: rollout, two ranks of the actor, critic, reward and reference " * 3)
    for step in range(1, 31):
        progress.step(step, {**STEP, "score/mean": math.nan if step == 3 else step / 10})
    progress.lines("a line that stays")
    for which in range(5):
        progress.warn(f"warning number {which} " + "which is quite long " * 9)
    picture = Console(file=io.StringIO(), width=width, height=30)
    lines = ["".join(segment.text for segment in line) for line in picture.render_lines(progress._render(), pad=False)]
    progress.close()
    assert all(len(line) <= width for line in lines)
    if width >= 50:
        assert len(lines) == 11 + 3, "nothing wraps"
        assert any("KL" in line and "2.81" in line and "healthy" in line for line in lines)
    assert [line[:18].strip() for line in lines[2:5]] == [f"! warning number {which}" for which in (2, 3, 4)]
    assert "a line that stays" in screen.getvalue() and "number 0" in screen.getvalue()


def picture_of(progress: LiveProgress, width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height)
    return ["".join(part.text for part in line) for line in console.render_lines(progress._render(), pad=False)]


def live(height: int = 24) -> LiveProgress:
    return LiveProgress("smoke", 40, 0, Console(file=io.StringIO(), width=80, height=height, force_terminal=True))


def test_phases_show_the_time_so_far_and_what_the_latest_steps_took(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = live()
    for took in (3.0, 5.0):
        for phase in ("generate", "score", "update"):
            progress.phase(f"step: {phase}", phase)
            now += 7.0  # does not count in the next step
        progress.step(1, {**STEP, "time/generate_s": took, "time/score_s": 1.0})
    progress.phase("step 3: generating", "generate")
    now += 3.0
    progress.phase("step 3: scoring", "score")
    now += 2.0
    lines = picture_of(progress)
    progress.close()
    bars = [line for line in lines if line.startswith(("generate", "score ", "update"))]
    assert [line.split()[0] for line in bars[:3]] == ["generate", "score", "update"]
    assert bars[0].rstrip().endswith("3.0 of 4.0 s") and bars[1].rstrip().endswith("2.0 of 1.0 s")
    assert bars[2].rstrip().endswith("0.0 s"), "no step has said how long an update takes"
    assert bars[0].count("━") > 0.7 * bars[1].count("━")


def test_between_steps_and_in_a_low_terminal_there_are_no_phases() -> None:
    progress, low = live(), live(height=9)
    for display in (progress, low):
        display.phase("step 1: generating", "generate")
        display.step(1, STEP)
    assert not any(line.startswith("generate") for line in picture_of(progress))
    for display in (progress, low):
        display.phase("step 2: generating", "generate")
    assert any(line.startswith("generate") for line in picture_of(progress))
    assert not any(line.startswith("generate") for line in picture_of(low, height=9))
    progress.status("saving checkpoint 2")
    assert not any(line.startswith("generate") for line in picture_of(progress))
    progress.close()
    low.close()


def test_each_role_that_starts_has_a_line() -> None:
    progress = live()
    progress.status("starting the roles")
    progress.starting({"actor": "loading 3/9 shards", "critic": "ready"})
    assert [line.split() for line in picture_of(progress)[-2:]] == [
        ["actor", "loading", "3/9", "shards"],
        ["critic", "ready"],
    ]
    progress.starting({})
    assert len(picture_of(progress)) == 2
    progress.close()


def test_the_heartbeat_says_what_each_role_does_until_the_next_status() -> None:
    stream = io.StringIO()
    progress = plain(stream, heartbeat_s=0.02)
    progress.status("starting the roles")
    progress.starting({"actor": "loading 3/9 shards", "critic": "ready"})
    until_told(stream, "shards")
    said = r"… still starting the roles, \d+ s: actor loading 3/9 shards; critic ready"
    assert re.search(said, stream.getvalue())
    progress.status("evaluating")
    told = len(stream.getvalue())
    until_told(stream, "still evaluating")
    progress.close()
    assert "shards" not in stream.getvalue()[told:]


def test_a_sample_of_a_step_is_two_lines_that_fit() -> None:
    row = SampleRow("ask " * 90, "an answer\nin two \x1b[31m lines " * 9, 0.5, None, 1.25, False)
    lines = step_sample(10, row, 80).splitlines()
    assert [len(line) for line in lines] == [80, 80]
    assert lines[0].startswith("step 10, prompt: ask ask") and lines[1].startswith(
        "  response (proxy +0.50, KL 1.2, truncated): an answer in two"
    )
    assert "\x1b" not in lines[1]


def test_no_terminal_means_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress("smoke", 4, 2)
    progress.close()
    assert isinstance(progress, PlainProgress)
    assert capsys.readouterr().out == "[    0 s] smoke: 4 steps, from step 3\n"


def test_a_cell_of_a_notebook_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cell starts with `!` writes to a terminal, whose cursor the page of the notebook does not move."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for name, value in {"TERM": "xterm-color", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    for variable, kind in (("", LiveProgress), ("JPY_PARENT_PID", PlainProgress)):
        monkeypatch.setenv(variable or "OTHER", "1")
        progress = make_progress("smoke", 4, 2)
        progress.close()
        assert isinstance(progress, kind)


def test_an_evaluation_is_compared_with_the_one_before() -> None:
    text = evaluation_lines(result("after", 1.0), result("before", 0.0))
    assert "evaluation after: 3 prompts  gold +1.000 ±0.100" in text
    assert "gold score: 0.000 -> 1.000" in text
    assert "standard errors" in text


def test_model_output_cannot_drive_the_terminal() -> None:
    text = sample_lines(result("before", 0.0), result("after", 1.0, "red \x1b[31m\u202e\x07" + "x" * 500))
    assert "\x1b" not in text and "\u202e" not in text and "\x07" not in text
    assert all(len(line) < 230 for line in text.splitlines())


def test_formats() -> None:
    assert [number(v) for v in (0.0, 1234.5, 61.24, -0.4181, 4.1e-6, math.nan, math.inf, 128.0)] == [
        "0", "1,234", "61.2", "−0.418", "4.1e-6", "NaN", "NaN", "128",
    ]  # fmt: skip
    assert [decimals_of(e) for e in (0.0331, 1.4, 25.0, 0.0, math.nan, 2e-6, 3e-7)] == [3, 1, 0, 3, 3, 6, 3]
    assert (decimal_text(1.5, 1, plus=True), decimal_text(-1.55, 1), percent(0.125)) == ("+1.5", "−1.6", "12.5 %")
    assert [duration(s) for s in (42.9, 185, 3723)] == ["42 s", "3:05", "1:02:03"]
    assert printable("a\tb\x00\ud800 👩\u200d🚀") == "a b\ufffd\ufffd 👩\u200d🚀"
    assert sparkline([0.0, 1.0, math.nan, 0.5]) == "▁█x▄"
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([math.nan]) == "x"


def test_without_steps_only_what_is_told_is_shown() -> None:
    stream = io.StringIO()
    progress = PlainProgress("reward", 0, 0, stream=stream)
    progress.lines("accuracy 80 %\nsaved")
    progress.close()
    assert [line[10:] for line in stream.getvalue().splitlines()] == ["reward", "accuracy 80 %", "saved"]
