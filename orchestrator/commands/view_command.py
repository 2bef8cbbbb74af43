"""`tetrarch view`: the folders of runs flow in; a local page that shows them is served until Ctrl-C."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import Debug, user_path
from orchestrator.errors import ConfigError

PORT = 8470
"""Where the viewer is, if nothing is said."""
ViewedRuns = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="[RUN]...", parser=user_path, help="The run_dir of runs, or folders that hold some [default: runs]."
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        metavar="PORT",
        min=0,
        max=65535,
        help=f"Port on 127.0.0.1; 0: any free one [default: {PORT}, or a free one if it is taken].",
        show_default=False,
    ),
]


def view(runs: ViewedRuns = None, port: Port = None, debug: Debug = False) -> None:
    """Look at runs in a browser: curves, every sample, tokens by their numbers; live, and only from this machine.

    Example: tetrarch view runs/smoke
    """
    with reported(debug):
        from orchestrator.stages.http_server import answering, url_of
        from orchestrator.viewer.shelf import Shelf
        from orchestrator.viewer.viewer_app import viewer_app

        app = viewer_app(Shelf(runs or [Path("runs")]))
        with _listening(port) as found, answering(app, found):
            typer.echo(f"open {url_of(found)} in a browser (Ctrl-C ends the viewer; the runs go on)")
            threading.Event().wait()


@contextmanager
def _listening(port: int | None) -> Iterator[socket.socket]:
    """Context with a socket at `port`; None: at `PORT`, or if that is taken at a free one, which is told."""
    from orchestrator.config.serving import ServingConfig
    from orchestrator.stages.http_server import listening

    with ExitStack() as opened:
        try:
            asked = ServingConfig(port=PORT if port is None else port)
            found = opened.enter_context(listening(asked, said_by="--port"))
        except ConfigError:
            if port is not None:
                raise
            typer.echo(f"port {PORT} is taken, maybe by another viewer; this one takes a free port", err=True)
            found = opened.enter_context(listening(ServingConfig(port=0), said_by="--port"))
        yield found
