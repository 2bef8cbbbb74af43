"""The picture of the viewer in orchestrator/README.md: a run flows in, a PNG of its page with an open sample flows out.

Needs Chromium. From the folder that the run's name begins in:

    .venv/bin/python -m tests.viewer_picture runs/smoke --step 6 --row 1 --output orchestrator/viewer.png
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

from orchestrator.config.serving import ServingConfig
from orchestrator.stages.http_server import answering, listening, url_of
from orchestrator.viewer.shelf import Shelf
from orchestrator.viewer.viewer_app import viewer_app
from tests.unit.chromium import browser

WIDTH, HEIGHT = 1280, 720
COLOURS = 200
"""Of the picture: what a page with tinted text needs, and few enough for a small file."""


def draw(run: Path, step: int, row: int, output: Path) -> None:
    """Write the picture."""
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        listening(ServingConfig(port=0)) as found,
        answering(viewer_app(Shelf([run])), found),
        browser(Path(profile)) as page,
    ):
        page.look(WIDTH, HEIGHT)
        shown = {"run": str(run), "tab": "samples", "at": step, "row": row, "sort": "score", "descending": "true"}
        page.open(f"{url_of(found)}/?{urlencode(shown)}", "document.querySelector('#same h3')")
        for _ in range(4):
            page.press("ArrowRight")
        image = Image.open(io.BytesIO(page.picture())).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(output, optimize=True)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--row", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    draw(options.run, options.step, options.row, options.output)


if __name__ == "__main__":
    main()
