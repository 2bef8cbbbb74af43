"""The files of `tetrarch evaluate`: what was measured on each set of held-out prompts flows in, `evaluate.json` and
`evaluated.jsonl` flow out, again with each set that is done, so that an error in the next one loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.report.evaluation_results import EvaluationResult
from orchestrator.report.run_files import EVALUATED, EVALUATED_ROWS, finite, replace_text


@dataclass(slots=True)
class EvaluationFiles:
    """The two files in `run_dir`; those of an earlier evaluation are replaced when the first set is done."""

    run_dir: Path
    _results: list[EvaluationResult] = field(default_factory=list)
    _rows: list[str] = field(default_factory=list)

    @property
    def paths(self) -> tuple[Path, Path]:
        """What was measured, and every response."""
        return self.run_dir / EVALUATED, self.run_dir / EVALUATED_ROWS

    def add(self, result: EvaluationResult, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a set that is done, with a row for each of its responses."""
        self._results.append(result)
        self._rows += [json.dumps(finite(row)) + "\n" for row in rows]
        replace_text(self.paths[1], "".join(self._rows))
        self._write({})

    def end(self, benchmarks: Sequence[Mapping[str, Any]]) -> None:
        """Write the results of the benchmarks, which come last."""
        self._write({"benchmarks": benchmarks})

    def _write(self, last: Mapping[str, Any]) -> None:
        """The set that compares the steps of a run stands at the top, once it is done, the others in `other_sets`."""
        told = {key: value for one in self._results if one.decides for key, value in one.to_json().items()}
        others = {one.name or "heldout": one.to_json() for one in self._results if not one.decides}
        told |= {**last, **({"other_sets": others} if others else {})}
        replace_text(self.paths[0], json.dumps(finite(told), indent=1) + "\n")
