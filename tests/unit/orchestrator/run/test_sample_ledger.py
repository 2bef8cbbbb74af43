"""The sample ledger notices every sample that was lost, taken twice, or left out without a reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.data.prompts import PromptSource, Questions
from orchestrator.errors import TetrarchError
from orchestrator.report.reporter import Reporter
from orchestrator.run.sample_ledger import TRUNCATED, LedgerLine, checked_summary, read_ledger, summary, wrong_in

PROMPTS, EACH = 7, 2


def ledger(steps: int = 6) -> list[tuple[int, LedgerLine]]:
    """Of a run over several passes, whose steps end in the middle of them."""
    ids = [[n] for n in range(PROMPTS)]
    source = PromptSource(Questions(ids, [str(n) for n in range(PROMPTS)], {}, ""), seed=3)
    lines = []
    for step in range(1, steps + 1):
        rows = len(source.next(3, EACH))
        dropped = {TRUNCATED: 1} if step % 2 else {}
        lines.append((step, LedgerLine(step - 1, source.drawn, rows, rows - len(dropped), dropped)))
    return lines


def test_a_sound_ledger(tmp_path: Path) -> None:
    lines = ledger()
    assert list(wrong_in(lines, PROMPTS)) == []
    assert summary([line for _, line in lines]) == "36 samples: 33 trained on, 3 dropped (truncated)"
    with Reporter(tmp_path, name="x", config_yaml="", tensorboard=False, html=False) as report:
        for step, line in lines:
            report.step(step, {"score/mean": 0.0}, ledger=line.to_json())
    assert read_ledger(tmp_path) == lines


def test_going_on_after_a_checkpoint_drops_what_came_later(tmp_path: Path) -> None:
    """A resumed run writes the steps after its checkpoint again; the ledger stays sound."""
    for done, until in ((0, 5), (3, 6)):
        made = {"tensorboard": False, "html": False, "resume_step": done}
        with Reporter(tmp_path, name="x", config_yaml="", **made) as report:
            for step, line in ledger()[done:until]:
                report.step(step, {"score/mean": 0.0}, ledger=line.to_json())
    assert read_ledger(tmp_path) == ledger()


def lost(lines: list[tuple[int, LedgerLine]]) -> None:
    del lines[2]


def twice(lines: list[tuple[int, LedgerLine]]) -> None:
    lines.insert(2, lines[2])


def same_prompts_again(lines: list[tuple[int, LedgerLine]]) -> None:
    """As if the cursor had not been restored."""
    lines[1] = (2, replace(lines[1][1], prompts=lines[0][1].prompts))


def left_out_without_a_reason(lines: list[tuple[int, LedgerLine]]) -> None:
    lines[1] = (2, replace(lines[1][1], trained=4))


def counted_twice(lines: list[tuple[int, LedgerLine]]) -> None:
    lines[1] = (2, replace(lines[1][1], trained=7))


def one_response_is_missing(lines: list[tuple[int, LedgerLine]]) -> None:
    lines[1] = (2, replace(lines[1][1], samples=5, trained=5))


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (lost, "step 4 follows step 2"),
        (twice, "step 3 follows step 3"),
        (same_prompts_again, "was drawn again before pass 1 had ended"),
        (left_out_without_a_reason, "step 2: of 6 samples 4 were trained on, and {} dropped"),
        (counted_twice, "step 2: of 6 samples 7 were trained on"),
        (one_response_is_missing, "step 2: 5 samples of 3 prompts"),
    ],
)
def test_what_is_wrong_is_said(plant, said: str) -> None:
    lines = ledger()
    plant(lines)
    assert any(said in text for text in wrong_in(lines, PROMPTS))


def test_a_run_whose_ledger_is_wrong_fails_at_its_end(tmp_path: Path) -> None:
    with Reporter(tmp_path, name="x", config_yaml="", tensorboard=False, html=False) as report:
        for step, line in ledger():
            report.step(step, {"score/mean": 0.0}, ledger=line.to_json())
        assert checked_summary(tmp_path, PROMPTS).startswith("ledger.jsonl: 36 samples: 33 trained on")
        report.step(9, {"score/mean": 0.0}, ledger=ledger()[0][1].to_json())
    with pytest.raises(TetrarchError, match=r"everything is saved, but ledger\.jsonl is wrong: step 9 follows step 6"):
        checked_summary(tmp_path, PROMPTS)


def test_a_file_that_no_run_has_written(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text('{"step": 1, "x": 2}\n')
    with pytest.raises(ValueError, match=r"ledger\.jsonl is not as a run has written it"):
        read_ledger(tmp_path)
