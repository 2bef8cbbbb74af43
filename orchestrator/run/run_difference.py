"""Where two runs part: the folders of two runs flow in; what differs flows out, in the order in which runs come to it.

Times, memory and throughput are left out; everything else is compared bit for bit. Nothing is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cluster.counts import counted
from orchestrator.config.yaml_text import YamlError, parse_yaml
from orchestrator.errors import ConfigError
from orchestrator.metrics import is_measured
from orchestrator.report import run_files
from orchestrator.run.checkpoint import Checkpoint, Checkpoints, saved_step
from orchestrator.run.resuming import differing, show_value

SHOWN_DIFFERENCES = 4
"""Differences that are named of each kind; the others are counted."""
KINDS = (
    ("metrics", "step", run_files.METRICS_FILE),
    ("samples", "sample", run_files.SAMPLES_FILE),
    ("evaluations", "evaluation", run_files.EVALUATION_FILE),
    ("ledger", "step", run_files.LEDGER_FILE),
    ("alerts", "alert", run_files.ALERTS_FILE),
)
"""What a file of JSON lines holds, the unit of a line, and its name."""
WITH_WEIGHTS = ("checkpoints", "models")
SAID = ("run_dir",)
"""Keys of the configuration that differ between any two runs."""


@dataclass(frozen=True, slots=True)
class ComparedKind:
    """One kind of content, compared: `ComparedKind("metrics", "8 steps", ("step 3 score/mean: 0.1 and 0.2",), 3)`."""

    kind: str
    """Such as `metrics`."""
    same: str
    """How much of it is the same."""
    differences: tuple[str, ...] = ()
    """The first of them is the earliest."""
    step: int | None = None
    """Of the first difference; None if there is none, or if it has no step."""
    decides: bool = True
    """Whether a difference means that the runs are not the same; false for their settings, and for alerts, which follow
    from the metrics and the settings."""
    in_both: bool = True
    """Whether both runs had any of it."""

    @property
    def lines(self) -> list[str]:
        """For a terminal."""
        more = len(self.differences) - SHOWN_DIFFERENCES
        texts = [*([self.same] if self.same or not self.differences else []), *self.differences[:SHOWN_DIFFERENCES]]
        texts += [f"and {counted(more, 'other difference')}"] if more > 0 else []
        return [f"{self.kind if number == 0 else '':<14}{text}" for number, text in enumerate(texts)]


@dataclass(frozen=True, slots=True)
class RunDifference:
    """All that was compared."""

    compared: Sequence[ComparedKind]

    @property
    def first(self) -> ComparedKind | None:
        """The earliest that makes the runs different; None if they are the same."""
        found = [one for one in self.compared if one.decides and one.differences]
        return min(found, key=lambda one: one.step if one.step is not None else float("inf"), default=None)

    @property
    def lines(self) -> list[str]:
        """For a terminal; the last one is the result."""
        first = self.first
        if first is None and any(one.kind in WITH_WEIGHTS and one.in_both for one in self.compared):
            result = "the runs are the same, bit for bit"
        elif first is None:
            result = "the runs are the same in all that was compared; neither checkpoints nor models could be"
        else:
            result = f"the runs part{'' if first.step is None else f' at step {first.step}'}: {first.differences[0]}"
        return [line for one in self.compared for line in one.lines] + [result]


def run_difference(first: Path, second: Path, only: int | None = None) -> RunDifference:
    """Compare the runs in two folders. ConfigError if one holds no run, or files that no run has written.

    Args:
        only: the step that is compared; None: all, and the models that the runs have left.
    """
    for folder in (first, second):
        if not (folder / run_files.METRICS_FILE).is_file():
            raise ConfigError(f"{folder} holds no {run_files.METRICS_FILE}; name the run_dir of a run")
    try:
        records = [run_files.read_record(folder) for folder in (first, second)]
        return RunDifference(
            [
                _configurations(*(record.config_yaml for record in records)),
                _settings("versions", *(record.state.versions for record in records)),
                _settings("data", *(dict(enumerate(record.state.data, 1)) for record in records)),
                *(_lines(*kind, first, second, only) for kind in KINDS),
                *_all_samples(first, second, only, decides=all(map(_keeps_samples, records))),
                _checkpoints(first, second, only),
                *([_models(first, second)] if only is None else []),
            ]
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None


def update_difference(
    run_dir: Path,
    step: int,
    role: str,
    metrics: tuple[Mapping[str, Any], Mapping[str, Any]],
    folder: Path,
    hashes: Mapping[str, str],
) -> RunDifference:
    """Compare one role's update in a step of a run with the same update in `folder`.

    Args:
        metrics: those of the run's step, and those of the update: what the first has more is not compared.
        hashes: path in `folder/role` → hash of the role's state after the update.
    """
    before, now = ({key: one[key] for key in metrics[1] if not is_measured(key)} for one in metrics)
    texts = tuple(f"{key}: {show_value(one)} and {show_value(other)}" for key, one, other in differing(before, now))
    told = [ComparedKind("metrics", "" if texts else f"the same: {', '.join(now)}", texts, step if texts else None)]
    kept = Checkpoints(run_dir / "checkpoints", keep=1).of_step(step, content=True)
    if kept is None:
        return RunDifference([*told, ComparedKind("checkpoints", f"the run has none of step {step}", in_both=False)])
    known = {name.removeprefix(f"{role}/"): known for name, known in kept.hashes.items() if name.startswith(f"{role}/")}
    texts = tuple(f"{role}'s {text}" for text in _of_files(kept.path / role, folder / role, known, hashes))
    same = "" if texts else f"the same: {role} after step {step}"
    return RunDifference([*told, ComparedKind("checkpoints", same, texts, step if texts else None)])


def _configurations(first: str, second: str) -> ComparedKind:
    try:
        before, now = (parse_yaml(text) or {} for text in (first, second))
    except YamlError as error:
        raise ConfigError(f"{run_files.CONFIG_FILE} of one of the runs is not YAML: {error}; restore it") from None
    found = [change for change in differing(before, now) if change[0] not in SAID]
    texts = tuple(f"{key}: {show_value(one)} and {show_value(other)}" for key, one, other in found)
    return ComparedKind("configuration", "" if texts else "the same", texts, decides=False)


def _settings(kind: str, first: Mapping[Any, str], second: Mapping[Any, str]) -> ComparedKind:
    texts = tuple(f"{key}: {before} and {now}" for key, before, now in differing(dict(first), dict(second)))
    same = "" if texts else ("the same" if first or second else "neither run says them")
    return ComparedKind(kind, same, texts, decides=False)


def _lines(kind: str, unit: str, name: str, first: Path, second: Path, only: int | None) -> ComparedKind:
    """Compare files of JSON lines, each of a step, and in each step in their order."""
    pairs = [_by_step(run_files.read_lines(folder / name), only) for folder in (first, second)]
    both = sorted(pairs[0].keys() & pairs[1].keys())
    found = [(step, text) for step in both for text in _of_step(step, pairs[0][step], pairs[1][step])]
    for lines, folder in zip(pairs, (first, second), strict=True):
        found += [(step, f"step {step} only in {folder}") for step in sorted(lines.keys() - set(both))]
    found.sort(key=lambda one: one[0])
    parted = {step for step, _ in found}
    same = sum(len(pairs[0][step]) for step in both if step not in parted)
    texts = tuple(text for _, text in found)
    return ComparedKind(kind, f"the same: {counted(same, unit)}", texts, _step(found), decides=kind != "alerts")


def _keeps_samples(record: run_files.RunRecord) -> bool:
    """Whether a run's configuration has it keep all samples, as it does by default."""
    said = (parse_yaml(record.config_yaml) or {}).get("report")
    return not isinstance(said, Mapping) or said.get("samples", True) is not None


def _all_samples(first: Path, second: Path, only: int | None, *, decides: bool) -> Iterator[ComparedKind]:
    """Compare the files with all samples, and their columns that both runs have. A file that one run alone has is lost,
    if both runs keep samples (then it `decides`)."""
    one, other = (run_files.kept_samples(folder) for folder in (first, second))
    steps = [step for step in sorted({*one, *other}) if only in (None, step)]
    if steps:
        found: list[tuple[int, str]] = []
        for step in steps:
            if step in one and step in other:
                found += [(step, f"step {step} {text}") for text in _of_samples(one[step], other[step])]
            else:
                found.append((step, f"step {step} only in {first if step in one else second}"))
        same = f"the same: {counted(len(steps) - len({step for step, _ in found}), 'step')}"
        yield ComparedKind("all samples", same, tuple(text for _, text in found), _step(found), decides=decides)


def _of_samples(first: Path, second: Path) -> Iterator[str]:
    from pyarrow import parquet

    tables = []
    for file in (first, second):
        with run_files.reading(file):
            tables.append(parquet.ParquetFile(file).read())
    one, other = tables
    for name in (name for name in one.column_names if name in other.column_names and one[name] != other[name]):
        pairs = zip_longest(one[name].to_pylist(), other[name].to_pylist())
        found = ((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
        row, (before, now) = next(found, (0, (str(one[name].type), str(other[name].type))))
        yield f"sample {row} {name}: {show_value(before)} and {show_value(now)}"


def _by_step(lines: Sequence[dict[str, Any]], only: int | None) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for line in (line for line in lines if only in (None, line["step"])):
        found.setdefault(line["step"], []).append({key: value for key, value in line.items() if not is_measured(key)})
    return found


def _of_step(step: int, first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> Iterator[str]:
    if len(first) != len(second):
        yield f"step {step}: {len(first)} and {len(second)} lines"
        return
    for place, (one, other) in enumerate(zip(first, second, strict=True), 1):
        which = f" line {place}" if len(first) > 1 else ""
        for key, before, now in differing(one, other):
            yield f"step {step}{which} {key}: {show_value(before)} and {show_value(now)}"


def _step(found: Sequence[tuple[int | None, str]]) -> int | None:
    return found[0][0] if found else None


def _checkpoints(first: Path, second: Path, only: int | None) -> ComparedKind:
    """Compare the checkpoints of the steps that both runs have."""
    kept = [Checkpoints(folder / "checkpoints", keep=1) for folder in (first, second)]
    both = sorted(step for step in set(kept[0].steps()) & set(kept[1].steps()) if only in (None, step))
    found = []
    for step in both:
        one, other = (checkpoints.of_step(step, content=True) for checkpoints in kept)
        if one is None or other is None:
            raise ConfigError(
                "\n".join(f"{folder} is damaged: {what}" for c in kept for folder, what in c.damaged().items())
            )
        found += [(step, f"step {step} {text}") for text in _of_checkpoints(one, other)]
    same = set(both) - {step for step, _ in found}
    text = f"the same: {counted(len(same), 'checkpoint')}" if both else "no step has one in both runs"
    return ComparedKind("checkpoints", text, tuple(text for _, text in found), _step(found), in_both=bool(both))


def _of_checkpoints(first: Checkpoint, second: Checkpoint) -> Iterator[str]:
    one, other = ({key: value for key, value in c.state.items() if key != "config"} for c in (first, second))
    for key, before, now in differing(one, other):
        yield f"driver's {key}: {show_value(before)} and {show_value(now)}"
    yield from _of_files(first.path, second.path, first.hashes, second.hashes)


def _of_files(first: Path, second: Path, known: Mapping[str, str], others: Mapping[str, str]) -> Iterator[str]:
    """Compare the files of two folders, given path → hash of each; where hashes differ, what the files hold."""
    for name in sorted({*known, *others}):
        if name not in known or name not in others:
            yield f"{name} is only in {first if name in known else second}"
        elif known[name] != others[name]:
            from roles.zero.state_difference import state_difference  # imports torch and DeepSpeed

            what = state_difference(first / name, second / name)
            if what is not None:
                yield f"{name}: {what}"


def _models(first: Path, second: Path) -> ComparedKind:
    """Compare the models that both runs have left."""
    from roles.durable import hash_of

    found: list[tuple[int | None, str]] = []
    same = 0
    for name in sorted(_left_by(first) & _left_by(second)):
        folders = first / name, second / name
        step = saved_step(folders[0])
        hashes = [
            {file.name: hash_of(file) for file in folder.glob("*.safetensors") if file.is_file()} for folder in folders
        ]
        texts = list(_of_files(*folders, *hashes))
        same += not texts
        found += [(step, f"{name}/{text}") for text in texts]
    text = f"the same: {counted(same, 'model')}" if same or found else "no model is in both runs"
    return ComparedKind("models", text, tuple(text for _, text in found), _step(found), in_both=bool(same or found))


def _left_by(run_dir: Path) -> set[str]:
    return {path.parent.name for path in run_dir.glob("*/*.safetensors") if path.parent.name != "failed"}


def as_json(difference: RunDifference) -> str:
    """For other programs: every difference of each kind."""
    kinds = {one.kind: {"same": one.same, "differences": one.differences} for one in difference.compared}
    first = difference.first
    parted = None if first is None else {"step": first.step, "what": first.differences[0]}
    return json.dumps({"same": first is None, "first": parted, **kinds}, indent=1)
