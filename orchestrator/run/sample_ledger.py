"""The sample ledger: what became of every generated sample.

A step's samples flow in, one line of `ledger.jsonl` flows out; the lines of a run flow in, and what is wrong with them
flows out: a step that is missing or twice, a prompt that was drawn twice in a pass over the data or never, samples that
were neither trained on nor dropped for a reason, a file of samples that says otherwise than its line.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, Self

from cluster.counts import counted
from orchestrator.errors import TetrarchError
from orchestrator.report.run_files import LEDGER_FILE, SAMPLES_FOLDER, kept_samples, read_lines, reading

TRUNCATED = "truncated"
"""Why a sample was dropped: the length limit had cut it (`ppo.truncated`)."""

NO_SPREAD = "no spread"
"""Why a sample was dropped: all responses to its prompt have the same score (`ppo.dynamic_sampling`)."""

FATES = ("version", "prompt_id", "response_id", "trained", "dropped")
"""Of each sample: the version of the weights that generated it; the row of its prompt; which of the responses to this
prompt it is, from 0 on; whether it was in the update; if not, why."""

SHOWN_ERRORS = 3
"""Errors of a ledger that are told."""


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """The samples of one step."""

    version: int
    """Version of the weights that generated them."""
    prompts: list[int]
    """Rows of the training prompts (of those that can be used), in the order in which they were drawn."""
    samples: int
    """Number of samples that were generated."""
    trained: int
    """Number of samples in the update, each of them once in each epoch."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Reason → number of samples that were left out of the update."""

    @classmethod
    def of(cls, fates: Mapping[str, Sequence[Any]]) -> Self:
        """The line of samples from their columns `FATES`, as a driver has them or a file of samples."""
        drawn = zip(fates["prompt_id"], fates["response_id"], strict=True)
        return cls(
            version=min(fates["version"]),
            prompts=[prompt for prompt, response in drawn if response == 0],
            samples=len(fates["version"]),
            trained=sum(fates["trained"]),
            dropped=dict(Counter(reason for reason in fates["dropped"] if reason is not None)),
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; the inverse of `LedgerLine(**values)`."""
        return asdict(self)


def read_ledger(run_dir: Path) -> list[tuple[int, LedgerLine]]:
    """Step and line of each step of a run, in the file's order. ValueError for a file that no run has written."""
    try:
        return [(line.pop("step"), LedgerLine(**line)) for line in read_lines(run_dir / LEDGER_FILE)]
    except TypeError as error:
        raise ValueError(f"{run_dir / LEDGER_FILE} is not as a run has written it: {error}") from None


def wrong_in(lines: Sequence[tuple[int, LedgerLine]], prompts: int) -> Iterator[str]:
    """What is wrong with the ledger of a run; nothing if every sample was trained on exactly once, or dropped for a
    reason.

    Args:
        lines: step and line, in the file's order.
        prompts: number of training prompts that can be used.
    """
    drawn: Counter[int] = Counter()
    before, total = 0, 0
    for step, line in lines:
        if step != before + 1:
            yield f"step {step} follows step {before}"
        before = step
        if line.samples != line.trained + sum(line.dropped.values()):
            yield f"step {step}: of {line.samples} samples {line.trained} were trained on, and {line.dropped} dropped"
        if not line.prompts or line.samples % len(line.prompts):
            yield f"step {step}: {counted(line.samples, 'sample')} of {counted(len(line.prompts), 'prompt')}"
        for row in line.prompts:
            if drawn[row] > total // prompts:
                yield f"step {step}: prompt {row} was drawn again before pass {total // prompts + 1} had ended"
            drawn[row] += 1
            total += 1


def wrong_files(files: Mapping[int, Path], lines: Sequence[tuple[int, LedgerLine]]) -> Iterator[str]:
    """Which files of samples say otherwise than the ledger. `files`: step → file."""
    from pyarrow import parquet

    told = dict(lines)
    for step, file in files.items():
        try:
            with reading(file):
                found = LedgerLine.of(parquet.ParquetFile(file).read(list(FATES)).to_pydict())
        except ValueError as error:
            yield str(error)
            continue
        if step not in told:
            yield f"{file} is of a step that {LEDGER_FILE} lacks"
        elif found != told[step]:
            name = next(f.name for f in fields(found) if getattr(found, f.name) != getattr(told[step], f.name))
            values = [reprlib.repr(getattr(line, name)) for line in (told[step], found)]
            yield f"step {step}: {name} is {values[0]}, but {values[1]} in {file}"


def checked_summary(run_dir: Path, prompts: int) -> str:
    """The ledger of a run that has ended, in a line for the user; TetrarchError if it is wrong. `prompts`: as in
    `wrong_in`."""
    lines, files = read_ledger(run_dir), kept_samples(run_dir)
    wrong = list(islice(chain(wrong_in(lines, prompts), wrong_files(files, lines)), SHOWN_ERRORS))
    if wrong:
        raise TetrarchError(f"everything is saved, but {LEDGER_FILE} is wrong: {'; '.join(wrong)}")
    told = f"{LEDGER_FILE}: {summary([line for _, line in lines])}"
    if not files:
        return told
    missing = [str(step) for step, _ in lines if step not in files]
    without = f", not of step {', '.join(missing[:SHOWN_ERRORS])}" if missing else ""
    without += ", …" if len(missing) > SHOWN_ERRORS else ""
    return f"{told}; {SAMPLES_FOLDER}/ has those of {len(files)} of {counted(len(lines), 'step')}{without}"


def summary(lines: Sequence[LedgerLine]) -> str:
    """For the user, such as `512 samples: 500 trained on, 12 dropped (truncated)`."""
    dropped = Counter[str]()
    for line in lines:
        dropped.update(line.dropped)
    reasons = f" ({', '.join(sorted(dropped))})" if dropped else ""
    trained = sum(line.trained for line in lines)
    total = counted(sum(line.samples for line in lines), "sample")
    return f"{total}: {trained} trained on, {dropped.total()} dropped{reasons}"
