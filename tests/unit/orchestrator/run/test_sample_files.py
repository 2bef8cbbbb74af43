"""All samples of a step as a Parquet file: every number and text of every sample, and the ledger's line from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from datasets import load_dataset
from pyarrow import parquet

from orchestrator.config.report import SampleFilesConfig
from orchestrator.errors import TetrarchError
from orchestrator.report.reporter import Reporter
from orchestrator.report.run_files import samples_of
from orchestrator.run.sample_files import StepSamples, samples_table, write_samples
from orchestrator.run.sample_ledger import TRUNCATED, LedgerLine, checked_summary
from roles.batch import Scored
from tests.unit.orchestrator.ppo.test_experience import RESPONSES, make_scored

TOKENS = ("rollout_logprobs", "old_logprobs", "reference_logprobs")


def samples(step: int = 1, columns: Mapping[str, Any] | None = None, **changes: Any) -> StepSamples:
    """Two prompts with two responses each, of which the second and the third were cut and not trained on."""
    scored = make_scored()
    rollouts = replace(scored.rollouts, prompts=["a", "a", "b", "b"], responses=["r0", "r1", "r2", "r3"])
    scored = replace(scored, rollouts=replace(rollouts, columns=dict(columns or {})))
    tokens = {"rollout_logprobs": rollouts.rollout_logprobs, "old_logprobs": scored.old_logprobs}
    tokens |= {"reference_logprobs": scored.reference_logprobs}
    said: dict[str, Any] = {"prompt_ids": [step % 2, 1 - step % 2], "seeds": [2**61, 5, 6, None]}
    said |= {
        "trained": {0, 3},
        "dropped": {1: TRUNCATED, 2: TRUNCATED},
        "environment": False,
        "named": {},
        "per_token": tokens,
    }
    return StepSamples(**{"step": step, "scored": scored, **said, **changes})


def test_a_row_has_everything_of_its_sample() -> None:
    scored = samples().scored
    rows = samples_table(samples(), SampleFilesConfig()).to_pylist()
    kl = ((scored.old_logprobs - scored.reference_logprobs) * scored.rollouts.response_mask).sum(1).tolist()
    assert rows[2] == {
        **{"step": 1, "version": 0, "prompt_id": 0, "response_id": 0, "seed": 6, "score": 3.0},
        **{"kl": pytest.approx(kl[2]), "prompt_length": 1, "length": 8, "finished": False},
        **{"trained": False, "dropped": TRUNCATED, "prompt": "b", "response": "r2"},
    }
    assert [row["seed"] for row in rows] == [2**61, 5, 6, None]
    assert [(row["prompt_id"], row["response_id"]) for row in rows] == [(1, 0), (1, 1), (0, 0), (0, 1)]
    assert [(row["prompt_length"], row["length"]) for row in rows] == RESPONSES
    assert [row["trained"] for row in rows] == [True, False, False, True]
    assert [row["score"] for row in rows] == [1.0, 2.0, 3.0, 4.0]


def test_named_numbers_are_columns() -> None:
    members = {f"score/{name}": torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64) for name in ("a", "b")}
    named = {**members, "reward/a/polite": torch.ones(4, dtype=torch.float64)}
    rows = samples_table(samples(named=named), SampleFilesConfig()).to_pylist()
    assert [rows[1][name] for name in ("score/a", "score/b", "reward/a/polite", "disagreement")] == [1.0, 1.0, 1.0, 0.0]


def test_texts_may_be_left_out() -> None:
    names = samples_table(samples(), SampleFilesConfig(texts=False)).column_names
    assert "score" in names and not {"prompt", "response"} & set(names)


def test_the_ledgers_line_is_that_of_the_rows(tmp_path: Path) -> None:
    write_samples(samples(), SampleFilesConfig(texts=False), tmp_path / "samples/step-000001.parquet")
    fates = parquet.read_table(tmp_path / "samples/step-000001.parquet").to_pydict()
    line = LedgerLine(0, [1, 0], 4, 2, {TRUNCATED: 2})
    assert samples().line == LedgerLine.of(fates) == line
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["step-000001.parquet"]


def test_per_token_columns_are_aligned_and_as_long_as_their_sample() -> None:
    """A conversation: in the first row the environment has said the fourth token after the prompt."""
    whole = samples()
    rollouts, mask = whole.scored.rollouts, whole.scored.rollouts.response_mask.clone()
    mask[0, 5] = False
    scored = replace(whole.scored, rollouts=replace(rollouts, response_mask=mask))
    kept = SampleFilesConfig.model_validate({"token_columns": ["token_ids", *TOKENS]})
    rows = samples_table(replace(whole, scored=scored, environment=True), kept).to_pylist()
    for number, (row, (prompt, length)) in enumerate(zip(rows, RESPONSES, strict=True)):
        ids = rollouts.token_ids[number].tolist()
        assert row["prompt_token_ids"] == ids[:prompt] and row["token_ids"] == ids[prompt : prompt + length]
        for name in TOKENS:
            assert row[name] == whole.per_token[name][number, prompt : prompt + length].tolist(), name
    assert rows[0]["generated"] == [True, True, True, False, True]
    assert (rows[0]["length"], rows[0]["turns"]) == (4, 2)
    assert rows[1]["generated"] == [True] and "environment_reward" in rows[1]


def test_chats_and_conversations_are_messages() -> None:
    asked = [{"role": "user", "content": "a"}]
    chats = samples_table(samples(columns={"messages": [asked] * 3 + [None]}), SampleFilesConfig())[
        "messages"
    ].to_pylist()
    assert chats[1] == [*asked, {"role": "assistant", "content": "r1"}] and chats[3] is None
    said = [*asked, {"role": "assistant", "content": {"odd": "content"}}]
    talk = samples(columns={"messages": [said] * 4}, environment=True)
    assert samples_table(talk, SampleFilesConfig())["messages"].to_pylist()[0] == [
        *asked,
        {"role": "assistant", "content": '{"odd": "content"}'},
    ]


def test_a_text_that_is_no_unicode_does_not_end_the_run(tmp_path: Path) -> None:
    whole = samples()
    rollouts = replace(whole.scored.rollouts, responses=["\ud800x", "\0", "ä", ""])
    odd = replace(whole, scored=replace(whole.scored, rollouts=rollouts))
    write_samples(odd, SampleFilesConfig(), tmp_path / "x.parquet")
    assert parquet.read_table(tmp_path / "x.parquet")["response"].to_pylist() == ["?x", "\0", "ä", ""]


def a_run(folder: Path, kept: SampleFilesConfig | None, steps: int = 3) -> None:
    with Reporter(folder, name="x", config_yaml="", tensorboard=False, html=False) as report:
        for step in range(1, steps + 1):
            whole = samples(step)

            def keep(path: Path, whole: StepSamples = whole) -> None:
                assert kept is not None
                write_samples(whole, kept, path)

            report.step(step, {"score/mean": 0.0}, ledger=whole.line.to_json(), keep=keep if kept else None)
        report.complete()


def test_the_files_are_read_as_one_data_set(tmp_path: Path) -> None:
    a_run(tmp_path, SampleFilesConfig.model_validate({"token_columns": ["token_ids"]}))
    files = str(tmp_path / "samples/*.parquet")
    rows = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["step"] == [1] * 4 + [2] * 4 + [3] * 4
    assert rows[0]["token_ids"] == samples().scored.rollouts.token_ids[0, 2:7].tolist()
    pandas = pytest.importorskip("pandas")
    assert pandas.read_parquet(tmp_path / "samples").groupby("step")["score"].mean().tolist() == [2.5] * 3


def test_the_end_of_a_run_checks_the_files_against_the_ledger(tmp_path: Path) -> None:
    a_run(tmp_path, SampleFilesConfig())
    summary = "ledger.jsonl: 12 samples: 6 trained on, 6 dropped (truncated); samples/ has those of 3 of 3 steps"
    assert checked_summary(tmp_path, 2) == summary
    samples_of(tmp_path, 2).unlink()
    assert checked_summary(tmp_path, 2).endswith("samples/ has those of 2 of 3 steps, not of step 2")


def test_not_every_missing_file_is_named(tmp_path: Path) -> None:
    a_run(tmp_path, SampleFilesConfig(), steps=6)
    for step in (1, 3, 4, 6):
        samples_of(tmp_path, step).unlink()
    assert checked_summary(tmp_path, 2).endswith("samples/ has those of 2 of 6 steps, not of step 1, 3, 4, …")


def test_a_run_that_keeps_no_samples_has_no_files(tmp_path: Path) -> None:
    a_run(tmp_path, None)
    assert checked_summary(tmp_path, 2) == "ledger.jsonl: 12 samples: 6 trained on, 6 dropped (truncated)"
    assert not (tmp_path / "samples").exists()


def cut(table: pyarrow.Table) -> pyarrow.Table:
    return table.slice(0, 3)


def other_prompt(table: pyarrow.Table) -> pyarrow.Table:
    return table.set_column(table.column_names.index("prompt_id"), "prompt_id", pyarrow.array([0, 0, 7, 7]))


def without_fate(table: pyarrow.Table) -> pyarrow.Table:
    return table.drop_columns(["trained"])


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (cut, r"step 2: samples is 4, but 3 in .*step-000002\.parquet"),
        (other_prompt, r"step 2: prompts is \[0, 1\], but \[0, 7\] in .*step-000002\.parquet"),
        (without_fate, r".*step-000002\.parquet is not as a run has written it \(KeyError: 'trained'"),
    ],
)
def test_a_file_that_says_otherwise_than_the_ledger_is_named(plant: Any, said: str, tmp_path: Path) -> None:
    a_run(tmp_path, SampleFilesConfig())
    file = samples_of(tmp_path, 2)
    parquet.write_table(plant(parquet.read_table(file)), file)
    with pytest.raises(TetrarchError, match=f"everything is saved, but ledger.jsonl is wrong: {said}"):
        checked_summary(tmp_path, 2)


def test_a_damaged_file_and_one_of_no_step_are_named(tmp_path: Path) -> None:
    a_run(tmp_path, SampleFilesConfig())
    samples_of(tmp_path, 1).write_bytes(b"PAR1")
    write_samples(samples(9), SampleFilesConfig(), samples_of(tmp_path, 9))
    with pytest.raises(
        TetrarchError, match=r"step-000001\.parquet is not as a run .*step-000009\.parquet is of a step th"
    ):
        checked_summary(tmp_path, 2)


def test_going_on_from_a_checkpoint_takes_later_files_away(tmp_path: Path) -> None:
    a_run(tmp_path, SampleFilesConfig())
    (tmp_path / "samples/step-of-mine.parquet").write_text("mine")
    with Reporter(tmp_path, name="x", config_yaml="", tensorboard=False, html=False, resume_step=2):
        assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
            *("step-000001.parquet", "step-000002.parquet", "step-of-mine.parquet")
        ]


def test_a_large_step_is_quick(tmp_path: Path) -> None:
    """Tensors go in whole: no row is touched by Python but for its texts."""
    rows, width = 4096, 512
    mask = (torch.arange(width) >= 64).expand(rows, width).contiguous()
    whole, zeros = samples(), torch.zeros(rows, width)
    rollouts = replace(
        whole.scored.rollouts,
        token_ids=torch.ones(rows, width, dtype=torch.int64),
        lengths=torch.full((rows,), width),
        response_mask=mask,
        rollout_logprobs=zeros,
        turn_rewards=zeros,
        finished=torch.ones(rows, dtype=torch.bool),
        versions=torch.zeros(rows, dtype=torch.int64),
        prompts=["a prompt"] * rows,
        responses=["a response"] * rows,
        counted=[{}] * rows,
    )
    scored = Scored(rollouts, zeros, zeros, zeros, scores=zeros[:, 0], disagreement=zeros[:, 0], named=[{}] * rows)
    changes = {"seeds": [1] * rows, "trained": set(range(rows)), "dropped": {}}
    large = replace(whole, scored=scored, per_token=dict.fromkeys(TOKENS, zeros), **changes)
    kept = SampleFilesConfig.model_validate({"token_columns": ["token_ids", *TOKENS]})
    assert samples_table(large, kept).num_rows == rows
