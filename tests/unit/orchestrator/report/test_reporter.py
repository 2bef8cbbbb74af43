from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from orchestrator.report.alert_lines import Alert
from orchestrator.report.evaluation_results import Estimate, EvaluationResult, SampleRow
from orchestrator.report.file_writer import FileWriter
from orchestrator.report.progress import PlainProgress
from orchestrator.report.reliability import ReliabilityBin
from orchestrator.report.reporter import Reporter, render_report
from orchestrator.report.run_files import read_record


def report(run_dir: Path, **options: Any) -> Reporter:
    return Reporter(
        run_dir, **{"name": "tiny", "steps": 3, "config_yaml": "seed: 1\n", "tensorboard": False, **options}
    )


def row(text: str = "hello") -> SampleRow:
    return SampleRow("ask", text, 0.5, None, 1.0, True)


def evaluation(label: str, step: int, score: float) -> EvaluationResult:
    values = [score, score + 1, score + 2.5]
    return EvaluationResult(
        step=step,
        label=label,
        prompts=3,
        proxy=Estimate.of(values),
        gold=None,
        kl=Estimate(float(step), 0.1),
        length=Estimate(9.0, 0.5),
        truncated_fraction=0.0,
        samples=[row(f"answer {label}")],
        proxy_values=values,
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with report(tmp_path / "run") as reporter:
        reporter.status("starting actors")
        reporter.evaluation(evaluation("before", 0, 0.0))
        for step in (1, 2, 3):
            reporter.phase("generate")
            reporter.step(step, {"score/mean": step / 2, "objective/kl": 1.0, "weights/version": step}, [row()])
        reporter.evaluation(evaluation("after", 3, 1.0))
    run = tmp_path / "run"
    metrics = lines(run / "metrics.jsonl")
    assert [next(iter(line)) for line in metrics] == ["step"] * 3
    assert metrics[1] == {"step": 2, "score/mean": 1.0, "objective/kl": 1.0, "weights/version": 2}
    assert [line["label"] for line in lines(run / "evaluation.jsonl")] == ["before", "after"]
    assert lines(run / "samples.jsonl")[2] == {
        "step": 3, "prompt": "ask", "response": "hello", "proxy": 0.5, "gold": None, "kl": 1.0, "finished": True,
        "messages": [], "talk": [],
    }  # fmt: skip
    assert (run / "config.yaml").read_text() == "seed: 1\n"
    assert read_record(run).state.status == "done"
    assert "answer before" in (run / "report.html").read_text(encoding="utf-8")
    shown = capsys.readouterr().out
    assert "step 2/3  score +1.000" in shown
    assert "proxy score: 1.167 -> 2.167" in shown
    assert "after (proxy +0.50, KL 1.0): answer after" in shown


def test_an_alert_stays_on_the_screen_in_a_file_and_in_tensorboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alert = Alert(1, "kl", "warn", "objective/kl 12.1, above 10", "The policy is far.")
    with report(tmp_path, tensorboard=True) as reporter:
        reporter.step(1, {"score/mean": 0.5})
        reporter.alert(alert)
    assert "warning: kl in step 1: objective/kl 12.1, above 10. The policy is far." in capsys.readouterr().out
    assert read_record(tmp_path).alerts == [alert]
    assert lines(tmp_path / "alerts.jsonl") == [asdict(alert)]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert "kl in step 1" in str(events.Tensors("alerts/text_summary")[0].tensor_proto.string_val)
    with report(tmp_path, resume_step=1) as reporter:
        assert reporter.alerts() == [asdict(alert)]
    with report(tmp_path) as reporter:
        assert reporter.alerts() == [], "a run that begins anew"


def test_the_newest_reliability_is_in_the_files_of_the_run(tmp_path: Path) -> None:
    with report(tmp_path) as reporter:
        for accuracy in (0.5, 0.7):
            reporter.reliability([ReliabilityBin(0.6, accuracy, 30)])
        reporter.step(1, {"preference/loss": 0.7})
    assert read_record(tmp_path).state.reliability == [ReliabilityBin(0.6, 0.7, 30)]
    assert "60 % sure, 70 % right (30 pairs)" in (tmp_path / "report.html").read_text(encoding="utf-8")
    with report(tmp_path, resume_step=1):
        assert read_record(tmp_path).state.reliability == []


def test_tensorboard_has_the_scalars_once_after_a_resume(tmp_path: Path) -> None:
    with report(tmp_path, tensorboard=True) as reporter:
        for step in (1, 2):
            reporter.step(step, {"score/mean": float(step)})
    with report(tmp_path, tensorboard=True, resume_step=1) as reporter:
        for step in (2, 3):
            reporter.step(step, {"score/mean": 10.0 * step})
        reporter.evaluation(evaluation("after", 3, 1.0))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("score/mean")] == [(1, 1.0), (2, 20.0), (3, 30.0)]
    assert events.Scalars("evaluation/proxy")[0].step == 3


def test_resuming_says_no_step_twice(tmp_path: Path) -> None:
    with report(tmp_path) as reporter:
        reporter.evaluation(evaluation("before", 0, 0.0))
        for step in (1, 2, 3):
            reporter.step(step, {"score/mean": float(step)}, [row(f"first {step}")])
        reporter.evaluation(evaluation("after", 3, 1.0))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "score/me')  # the process died while it wrote
    with report(tmp_path, steps=4, resume_step=2) as reporter:
        for step in (3, 4):
            reporter.step(step, {"score/mean": -float(step)}, [row(f"second {step}")])
        reporter.evaluation(evaluation("after", 4, 2.0))
    assert [(line["step"], line["score/mean"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (1, 1.0), (2, 2.0), (3, -3.0), (4, -4.0),
    ]  # fmt: skip
    assert [(line["label"], line["step"]) for line in lines(tmp_path / "evaluation.jsonl")] == [
        ("before", 0), ("after", 4),
    ]  # fmt: skip
    assert [line["response"] for line in lines(tmp_path / "samples.jsonl")] == [
        "first 1", "first 2", "second 3", "second 4",
    ]  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
def test_an_evaluation_that_ended_between_two_sets_is_made_again(tmp_path: Path, whole: bool) -> None:
    with report(tmp_path) as reporter:
        reporter.step(1, {"score/mean": 1.0})
        reporter.evaluation(replace(evaluation("step 1", 1, 0.5), name="chat", decides=False))
        if whole:
            reporter.evaluation(replace(evaluation("step 1", 1, 0.5), name="math"))
    with report(tmp_path, resume_step=1) as reporter:
        assert len(reporter.evaluations) == whole
    assert [line["name"] for line in lines(tmp_path / "evaluation.jsonl")] == (["chat", "math"] if whole else [])


def test_a_fresh_run_starts_the_files_afresh(tmp_path: Path) -> None:
    for _ in range(2):
        with report(tmp_path) as reporter:
            reporter.step(1, {"score/mean": 1.0})
    assert len(lines(tmp_path / "metrics.jsonl")) == 1


def test_what_is_not_finite_is_null_in_json_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with report(tmp_path) as reporter:
        reporter.step(1, {"value/loss": math.nan, "objective/kl": math.inf, "score/mean": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "value/loss": null, "objective/kl": null, "score/mean": 1.0}\n'
    assert math.isnan(read_record(tmp_path).metrics[0]["value/loss"])
    assert "NOT FINITE: value/loss, objective/kl" in capsys.readouterr().out
    assert "Not a number at step 1." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_an_undeclared_metric_is_refused(tmp_path: Path) -> None:
    wanted = r"score/maen is not declared; add it to orchestrator/metrics\.py"
    with report(tmp_path) as reporter, pytest.raises(ValueError, match=wanted):
        reporter.step(1, {"score/maen": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_failed_run_leaves_its_report_and_its_own_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="rank 1 died"), report(tmp_path) as reporter:
        reporter.step(1, {"score/mean": 1.0})
        raise RuntimeError("rank 1 died")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "failed after step 1" in page
    assert "RuntimeError: rank 1 died" in page


def test_a_report_that_fails_does_not_hide_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(run_dir: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr("orchestrator.report.reporter.render_report", broken)
    with pytest.raises(RuntimeError, match="rank 1 died"), report(tmp_path):
        raise RuntimeError("rank 1 died")
    assert "the report could not be written: OSError: disk full" in capsys.readouterr().out
    with pytest.raises(OSError, match="disk full"), report(tmp_path):
        pass


def test_an_interrupted_run_is_stopped_not_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), report(tmp_path):
        raise KeyboardInterrupt
    assert read_record(tmp_path).state.status == "stopped"
    assert "interrupted by the user" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_killed_run_can_be_drawn_from_what_it_left(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "score/mean": 1.0}\n{"step": 2, "sco')
    page = render_report(tmp_path).read_text(encoding="utf-8")
    assert "unfinished, 1 of 1 step<" in page


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl holds a line that is not JSON"):
        render_report(tmp_path)


def test_every_few_steps_a_sample_is_shown_each_time_to_another_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [SampleRow(f"prompt {which}", "said", 0.0, None, 0.0, True) for which in range(3)]
    with report(tmp_path, html=False, sample_every=2, progress=PlainProgress("mine", 6, 0)) as reporter:
        for step in range(1, 7):
            reporter.step(step, {"score/mean": 1.0}, rows)
    lines = [line.split("] ")[1] for line in capsys.readouterr().out.splitlines() if "prompt: " in line]
    assert lines == ["step 2, prompt: prompt 1", "step 4, prompt: prompt 2", "step 6, prompt: prompt 0"]


def test_the_progress_can_be_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with report(tmp_path, html=False, progress=PlainProgress("mine", 1, 0)):
        pass
    assert "mine: 1 step\n" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def test_a_disk_that_does_not_answer_is_waited_for_no_longer_than_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, str]] = []

    @contextmanager
    def at_most(seconds: float, doing: str) -> Iterator[None]:
        seen.append((seconds, doing))
        yield

    monkeypatch.setattr("orchestrator.report.reporter.at_most", at_most)
    with report(tmp_path, save_s=7.0) as run:
        run.step(1, {"score/mean": 0.5})
        run.sync()
    assert [seconds for seconds, _ in seen] == [7.0] * 3
    assert [doing.split()[0] for _, doing in seen] == ["writing", "waiting", "writing"]


def test_files_that_are_not_written_in_time_end_a_run_with_an_error_and_not_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`at_most` ends the process; files that are written beside the run have a deadline of their own."""
    within: list[str] = []

    @contextmanager
    def at_most(seconds: float, doing: str) -> Iterator[None]:
        within.append(doing)
        yield
        within.remove(doing)

    waited = []
    wait = FileWriter.wait
    monkeypatch.setattr("orchestrator.report.reporter.at_most", at_most)
    monkeypatch.setattr(FileWriter, "wait", lambda files: (waited.append(list(within)), wait(files)))
    with report(tmp_path, trace=True) as run:
        run.step(1, {"score/mean": 0.5})
    assert waited == [[]] * len(waited) and len(waited) == 2, "by the timeline and by the end of the files"


def test_sets_of_heldout_prompts_are_told_under_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def of_set(name: str, label: str, step: int, score: float) -> EvaluationResult:
        return replace(evaluation(label, step, score), name=name, decides=name == "math", kl=None)

    with report(tmp_path, tensorboard=True) as reporter:
        for label, step, score in (("before", 0, 0.0), ("after", 3, 1.0)):
            reporter.evaluation(of_set("", label, step, 10 * score))
            reporter.evaluation(of_set("math", label, step, score))
            reporter.step(step + 1, {"score/mean": 0.5})
        assert [one.name for one in reporter.evaluations] == ["math", "math"]
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "evaluation after on math" in line]
    assert "3 prompts  proxy +2.167" in line and "KL" not in line
    assert "proxy score: 1.167 -> 2.167" in shown and "proxy score: 1.167 -> 11.167" in shown
    record = read_record(tmp_path)
    assert [one.name for one in record.evaluations] == ["math", "math"]
    assert {name: len(own) for name, own in record.other_sets.items()} == {"": 2}
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {tag for tag in events.Tags()["scalars"] if tag.startswith("evaluation/")} == {
        *("evaluation/proxy", "evaluation/length", "evaluation/math/proxy", "evaluation/math/length"),
        *("evaluation/heldout/proxy", "evaluation/heldout/length"),
    }
    assert [event.value for event in events.Scalars("evaluation/proxy")] == pytest.approx([7 / 6, 13 / 6])
    with report(tmp_path, resume_step=3) as again:
        again.evaluation(of_set("", "step 3", 3, 20.0))
    assert "proxy score: 1.167 -> 21.167" in capsys.readouterr().out, "the one before is that of its own set"
