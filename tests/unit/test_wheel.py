from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("orchestrator", "roles", "cluster")


def test_the_wheel_holds_the_files_that_are_no_python(tmp_path: Path) -> None:
    """The report's template, style and script, and the tables: they are read when the package is installed, too."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    suffixes = (".css", ".html", ".jinja", ".js", ".yaml", ".py")
    ours = {
        str(f.relative_to(ROOT)) for package in PACKAGES for f in (ROOT / package).rglob("*") if f.suffix in suffixes
    }
    assert {"orchestrator/report/report.css", "orchestrator/report/report.html.jinja"} <= ours
    assert {"orchestrator/viewer/viewer.html", "orchestrator/stages/serving_page.html"} <= ours
    assert ours - packed == set()
    guide = {
        f"orchestrator/illness/{f.name}" for f in (ROOT / "configs/illness").iterdir() if f.suffix in (".md", ".svg")
    }
    assert len(guide) > 10 and guide - packed == set(), "alerts name it, and it shows its pictures"
