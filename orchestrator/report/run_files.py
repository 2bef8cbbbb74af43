"""The files that a run's reports are made of: JSON lines, the configuration and the state of the run.

JSON has no NaN or infinity: they are written as `null` and read back as NaN.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.report.alert_lines import Alert
from orchestrator.report.evaluation_results import EvaluationResult, SampleRow, sample_from_json
from orchestrator.report.reliability import ReliabilityBin
from orchestrator.timeline.trace_file import TRACE_FILE
from roles.durable import replace_durably, replacing

T = TypeVar("T")

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"
SAMPLES_FOLDER = "samples"
"""Folder of the files with all samples, one of each step."""
LEDGER_FILE = "ledger.jsonl"
"""What became of every generated sample."""
EVALUATION_FILE = "evaluation.jsonl"
ALERTS_FILE = "alerts.jsonl"
CONFIG_FILE = "config.yaml"
STATE_FILE = "run.json"
HTML_FILE = "report.html"
EVALUATED, EVALUATED_ROWS = "evaluate.json", "evaluated.jsonl"
"""What `tetrarch evaluate` has measured, and every response."""
VERDICTS = "judge-answers.jsonl"
"""What the judge of a win rate has answered, so that no comparison is paid for twice."""
BEST_OF_N = "best-of-n.jsonl"
"""The best responses that `tetrarch best-of-n` has found, where it is not told another file."""
LINES = (METRICS_FILE, SAMPLES_FILE, EVALUATION_FILE, LEDGER_FILE, ALERTS_FILE)
"""Files of JSON lines, each of a step."""
ALL_FILES = (*LINES, CONFIG_FILE, STATE_FILE, HTML_FILE, TRACE_FILE)


@dataclass(frozen=True, slots=True)
class RunState:
    """State of a run. `status` is `running`, `done`, `stopped` (by the user, or before its last step) or `failed`."""

    name: str
    steps: int
    """Number of steps of the whole run; 0: not known yet."""
    status: str = "running"
    error: str = ""
    targets: dict[str, float] = field(default_factory=dict)
    """Metric → the value that a controller steers it to."""
    started: str = ""
    """Time of the latest start, ISO 8601."""
    title: str = ""
    """The kind of training, such as `PPO`."""
    data: list[str] = field(default_factory=list)
    """What was read to train on, in lines."""
    versions: dict[str, str] = field(default_factory=dict)
    """Package → its version on the driver's machine."""
    models: dict[str, str] = field(default_factory=dict)
    """Key of a model of the hub → its name and the commit that was read, `owner/name@commit`."""
    best: int | None = None
    """The step whose models the run has left; None: the last one."""
    reliability: list[ReliabilityBin] = field(default_factory=list)
    """Of a reward model at its last test; empty for other trainings."""
    facts: dict[str, str] = field(default_factory=dict)
    """What it is made on: models, ranks, machine, code."""
    ended: str = ""
    """Why a rule of the configuration has ended the run before its last step."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """All data of a report."""

    state: RunState
    metrics: list[dict[str, float]]
    """Metrics of each step, ascending; NaN for a value that was not finite."""
    evaluations: list[EvaluationResult]
    """Those on the set of held-out prompts that compares the steps of the run."""
    samples: list[SampleRow]
    """Samples of the last step."""
    config_yaml: str
    alerts: list[Alert] = field(default_factory=list)
    """The rules that have fired, in their order."""
    other_sets: dict[str, list[EvaluationResult]] = field(default_factory=dict)
    """Name of another set of held-out prompts (empty: `prompts.heldout`) → its evaluations."""

    @property
    def heldout_sets(self) -> dict[str, list[EvaluationResult]]:
        """Name of every set of held-out prompts → its evaluations; that which compares the steps is the first."""
        return {self.evaluations[0].name if self.evaluations else "": self.evaluations, **self.other_sets}


def append_line(path: Path, data: Mapping[str, Any]) -> None:
    """Append one JSON object as a line, and flush it."""
    line = json.dumps(finite(data), allow_nan=False) + "\n"
    with path.open("a", encoding="utf-8") as file:
        file.write(line)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """All objects of a JSON-lines file, each of a step; none if it is missing. A last line that a crash cut short is
    left out."""
    if not path.exists():
        return []
    with reading(path):
        whole = [line for line in path.read_bytes().split(b"\n")[:-1] if line.strip()]
        try:
            lines = [json.loads(line) for line in whole]
        except ValueError as error:
            raise ValueError(f"{path} holds a line that is not JSON ({error}); fix or remove that line") from error
        wrong = next((i for i, line in enumerate(lines, 1) if type(dict(line)["step"]) is not int), None)
        if wrong is not None:
            raise ValueError(f"line {wrong} says no step")
    return lines


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """ValueError that names the file, if its content is not what a run writes."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); restore or remove it") from error
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        if str(path) in str(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} is not as a run has written it ({reason}); restore or remove it") from error


def samples_of(run_dir: Path, step: int) -> Path:
    """The file with all samples of a step."""
    return run_dir / SAMPLES_FOLDER / f"step-{step:06d}.parquet"


def kept_samples(run_dir: Path, after: int = 0) -> dict[int, Path]:
    """Step → file with all its samples, of the steps after `after` that have one, ascending."""
    files = (run_dir / SAMPLES_FOLDER).glob("step-*.parquet")
    steps = [int(name[1]) for file in files if (name := re.fullmatch(r"step-(\d+)\.parquet", file.name))]
    return {step: samples_of(run_dir, step) for step in sorted(steps) if step > after}


def kept_scores(run_dir: Path) -> dict[str, list[float]]:
    """`step N` → scores of all its samples, of the first and the last step that has a file of them."""
    files = kept_samples(run_dir)
    found = {}
    for step in sorted({min(files), max(files)}) if files else ():
        from pyarrow import parquet

        with reading(files[step]):
            found[f"step {step}"] = parquet.ParquetFile(files[step]).read(["score"])["score"].to_pylist()
    return found


def drop_after(path: Path, step: int) -> None:
    """Keep only the lines up to `step`, so that a resumed run reports no step twice; replaces the file by a rename."""
    if not path.exists():
        return
    kept = [line for line in read_lines(path) if line["step"] <= step]
    replace_durably(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def drop_cut_evaluation(path: Path, step: int) -> None:
    """Drop the lines of the evaluation of `step` if it ended before the set that decides, which comes last: a resumed
    run makes it again, with all sets."""
    own = [line for line in read_lines(path) if line["step"] == step] if path.exists() else []
    if own and not any(line.get("decides", True) for line in own):
        drop_after(path, step - 1)


def write_state(run_dir: Path, state: RunState) -> None:
    """Replace `run.json`."""
    replace_text(run_dir / STATE_FILE, json.dumps(finite(asdict(state)), indent=1) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, as far as other processes see, without waiting for the disk."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_record(run_dir: Path) -> RunRecord:
    """The data in the files of a run; missing files are treated as empty."""
    metrics = _metrics(run_dir / METRICS_FILE)
    with reading(run_dir / EVALUATION_FILE):
        evaluations = [_typed(EvaluationResult.from_json(line)) for line in read_lines(run_dir / EVALUATION_FILE)]
    with reading(run_dir / SAMPLES_FILE):
        lines = read_lines(run_dir / SAMPLES_FILE)
        last = max((line["step"] for line in lines), default=0)
        samples = [_typed(sample_from_json(line, judged=False)) for line in lines if line["step"] == last]
    config, state = run_dir / CONFIG_FILE, run_dir / STATE_FILE
    with reading(state):
        said = json.loads(state.read_text(encoding="utf-8")) if state.exists() else None
        unsaid = RunState(run_dir.name, int(metrics[-1]["step"]) if metrics else 0)
        stands = unsaid if said is None else _typed(RunState(**said))
    with reading(config):
        config_yaml = config.read_text(encoding="utf-8") if config.exists() else ""
    others = {one.name: [e for e in evaluations if e.name == one.name] for one in evaluations if not one.decides}
    with reading(run_dir / ALERTS_FILE):  # a line without a meaning tells that the run went back
        told = [line for line in read_lines(run_dir / ALERTS_FILE) if "means" in line]
        said = {"rule": "", "action": "warn", "seen": "", "means": "", "good": 0}  # where a line does not
        alerts = [_typed(Alert(line["step"], **{key: line.get(key, said[key]) for key in said})) for line in told]
    decided = [one for one in evaluations if one.decides]
    return RunRecord(stands, metrics, decided, samples, config_yaml, alerts, others)


_TYPES: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (RunState, EvaluationResult, SampleRow, Alert)
}


def _typed(value: T) -> T:
    """What a file holds, if its fields have their types; ValueError otherwise."""
    try:
        checked: T = _TYPES[type(value)].validate_python(asdict(value))  # type: ignore[call-overload]
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return checked


def _metrics(path: Path) -> list[dict[str, float]]:
    """With NaN for `null`."""
    found = []
    for line in read_lines(path):
        wrong = [key for key, value in line.items() if not isinstance(value, int | float | None)]
        if wrong:
            raise ValueError(f"{path} has no number for {wrong[0]} at step {line['step']}; restore or remove it")
        found.append({key: math.nan if value is None else value for key, value in line.items()})
    return found


def finite(value: Any) -> Any:
    """`value` with None (`null` in JSON) in place of every float that is not finite, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
