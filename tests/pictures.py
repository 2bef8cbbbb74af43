"""Draws the pictures of the READMEs but for those of illnesses, from real runs and plans: `make pictures`

The runs are those of `configs/illness/illnesses.py`. The report needs a Chromium; where there is none, its picture is
left as it is.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from rich.console import Console

from configs.illness.illnesses import IllnessRun
from orchestrator.commands.plan_command import without_web_fonts
from orchestrator.report.progress import LiveProgress
from orchestrator.report.run_files import ALERTS_FILE, METRICS_FILE, read_lines, read_record
from tests.readmes import ROOT

PLANNED = "configs/llama3-8b-two-pools.yaml"
PLAN, SCREEN, REPORT = ROOT / "cluster/plan.svg", ROOT / "orchestrator/screen.svg", ROOT / "orchestrator/report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STEP = 21
"""The screen is that of a run in this step."""


def draw_plan(file: Path) -> None:
    """`tetrarch plan` of a layout on two kinds of cards."""
    words = [sys.executable, "-m", "orchestrator", "plan", PLANNED, "--svg", str(file)]
    environment = {**os.environ, "COLUMNS": "80", "TERM": "xterm-256color"}
    subprocess.run(words, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)


def draw_screen(file: Path, run: IllnessRun) -> None:
    """What the terminal showed in the middle of a run: the display is told again what it was told then."""
    console = Console(width=80, height=40, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    lines = read_lines(run.folder / METRICS_FILE)
    alerts = {line["step"]: line for line in read_lines(run.folder / ALERTS_FILE)}
    now = 0.0
    with patch.object(time, "monotonic", lambda: now):
        display = LiveProgress(run.name, read_record(run.folder).state.steps, 0, console)
        for line in lines[: STEP - 1]:
            now += line["time/step_s"]
            display.step(line["step"], line)
            if line["step"] in alerts:
                alert = alerts[line["step"]]
                display.warn(f"{alert['rule']} in step {alert['step']}: {alert['seen']}. {alert['means']}")
        half = lines[STEP - 1]
        display.phase(f"step {STEP}: generating responses", "generate")
        now += half["time/generate_s"]
        display.phase(f"step {STEP}: training", "update")
        now += half["time/update_s"] / 2
        recorded = Console(width=80, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
        recorded.print(display._render())
        display.close()
    file.write_text(without_web_fonts(recorded.export_svg(title=f"tetrarch train {run.name}")), encoding="utf-8")


def draw_report(file: Path, run: IllnessRun) -> bool:
    """A screenshot of the first screen of `report.html`; False if there is no browser."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as home:
        flags = [
            "--headless",
            "--no-sandbox",
            "--hide-scrollbars",
            "--window-size=1000,1010",
            f"--user-data-dir={home}",
        ]
        page = (run.folder / "report.html").as_uri()
        words = [browser, *flags, "--virtual-time-budget=8000", f"--screenshot={file}", page]
        subprocess.run(words, check=True, timeout=120, capture_output=True)
    return True


def main() -> None:
    draw_plan(PLAN)
    draw_screen(SCREEN, IllnessRun("poor-critic"))
    if not draw_report(REPORT, IllnessRun("hacked")):
        print(f"no browser ({', '.join(BROWSERS)}): {REPORT.relative_to(ROOT)} is left as it is")


if __name__ == "__main__":
    main()
