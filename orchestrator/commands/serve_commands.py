"""The commands that answer with a trained policy: `serve`, `best-of-n`. A file and overrides flow in."""

from __future__ import annotations

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import ConfigFile, Debug, Overrides
from orchestrator.config.loading import load_root
from orchestrator.config.serving import ServingRun


def serve(config: ConfigFile, overrides: Overrides = None, debug: Debug = False) -> None:
    """Serve the policy over HTTP: N scored responses, OpenAI-compatible routes, a page (the section serving).

    Example: tetrarch serve configs/smoke.yaml serving.port=8080
    """
    with reported(debug) as report:
        run = report.loaded(load_root(ServingRun, config, overrides or ()))
        from orchestrator.checks.preparation import prepare_serve

        prepare_serve(run)
        from orchestrator.stages.serving import serve

        serve(run)
