"""`make mutants`: plant each fault in a copy of the sources, and see whether the tests notice.

Prints a table, as the README has it; exit code 1 if a fault survives. Names of faults as arguments: only these.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.fault import Fault
from tests.mutants.faults import FAULTS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("orchestrator", "roles", "cluster", "configs", "tests", "docker", "pyproject.toml", "README.md", "Makefile")
TESTS_FAILED = 1
DEADLINE_S = 900
AT_ONCE = 2
"""Copies in which faults are planted at the same time."""


def noticed_by(fault: Fault, copy: Path) -> str | None:
    """The first test that fails with the fault in `copy`; None if all pass. The file is as before afterwards."""
    file = copy / fault.file
    text = file.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.name}: {fault.file} has {fault.old!r} {text.count(fault.old)} times, not once")
    file.write_text(text.replace(fault.old, fault.new))
    try:
        return first_failure(fault.tests.split(), copy)
    finally:
        file.write_text(text)


def first_failure(tests: list[str], copy: Path) -> str | None:
    """The first of `tests` that fails in `copy`, None if all pass; anything else than failed tests ends the program."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            text=True,
            capture_output=True,
            timeout=DEADLINE_S,
        )
    except subprocess.TimeoutExpired:
        return f"no end within {DEADLINE_S} s"
    if done.returncode == 0:
        return None
    failed = re.search(r"^FAILED \S*::(\w+)", done.stdout, re.MULTILINE)
    if done.returncode != TESTS_FAILED or failed is None:
        raise SystemExit(f"pytest did not run {' '.join(tests)}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return failed[1]


def main(names: list[str]) -> int:
    """Exit code."""
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        raise SystemExit(f"no fault is called {', '.join(sorted(unknown))}; see tests/mutants/faults.py")
    faults = [fault for fault in FAULTS if not names or fault.name in names]
    survived = 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        copies = [copied(Path(folder) / str(number)) for number in range(AT_ONCE)]
        tests = sorted({test for fault in faults for test in fault.tests.split()})
        failure = first_failure(tests, copies[0])
        if failure is not None:
            raise SystemExit(f"{failure} fails without any fault; fix it first")

        def tried(fault: Fault) -> str | None:
            copy = copies.pop()
            try:
                return noticed_by(fault, copy)
            finally:
                copies.append(copy)

        print("| Fault | in | noticed by |\n| --- | --- | --- |", flush=True)
        for fault, test in zip(faults, pool.map(tried, faults), strict=True):
            survived += test is None
            print(f"| {fault.name} | `{fault.file}` | {f'`{test}`' if test else '**nobody**'} |", flush=True)
    print(f"\n{len(faults) - survived} of {len(faults)} faults are noticed.")
    return int(survived > 0)


def copied(copy: Path) -> Path:
    """The sources, in the new folder `copy`."""
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    return copy


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
