"""The commands that answer with a trained policy: `serve`, `best-of-n`. A file and overrides flow in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.checks.run_folders import check_rows
from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import ConfigFile, Debug, Overrides
from orchestrator.config.loading import load_root
from orchestrator.config.serving import RewardServingRun, ServingRun
from orchestrator.errors import ConfigError

Alone = Annotated[bool, typer.Option("--reward", help="Serve the reward alone, to score what others generate.")]
Output = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Where the rows go; the numbers go beside them, as .json [default: best-of-n.jsonl in run_dir].",
        show_default=False,
    ),
]


def serve(config: ConfigFile, overrides: Overrides = None, reward: Alone = False, debug: Debug = False) -> None:
    """Serve the policy over HTTP: N scored responses, OpenAI-compatible routes, a page (the section serving).

    Example: tetrarch serve configs/smoke.yaml serving.port=8080
    """
    with reported(debug) as report:
        if reward:
            alone = report.loaded(load_root(RewardServingRun, config, overrides or ()), overrides)
            from orchestrator.checks.preparation import prepare_reward_service

            prepare_reward_service(alone)
            from orchestrator.stages.serving import serve_reward

            return serve_reward(alone)
        run = report.loaded(load_root(ServingRun, config, overrides or ()), overrides)
        from orchestrator.checks.preparation import prepare_serve

        prepare_serve(run)
        from orchestrator.stages.serving import serve

        serve(run)


def best_of_n(config: ConfigFile, overrides: Overrides = None, output: Output = None, debug: Debug = False) -> None:
    """Answer the held-out prompts N times each, and keep the best: rows to learn from, and the KL that this costs.

    Example: tetrarch best-of-n configs/smoke.yaml serving.responses=16 prompts.heldout.limit=32
    """
    with reported(debug) as report:
        if output is not None and output.suffix.lower() == ".json":
            rows = output.with_suffix(".jsonl")
            raise ConfigError(f"--output {output}: that is where the numbers go that belong to {rows}; use that name")
        if output is not None:
            check_rows(output, "--output")
        run = report.loaded(load_root(ServingRun, config, overrides or ()), overrides)
        from orchestrator.checks.preparation import prepare_best_of_n

        questions = prepare_best_of_n(run)
        report.read(questions)
        from orchestrator.stages.best_of_n import best_of_n

        best_of_n(run, questions, output)
