"""The command `label`: a judge's preferences between responses, or its revisions of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import ConfigFile, Debug, Overrides, user_path
from orchestrator.config.labelling import LabellingRun
from orchestrator.config.loading import load_root

Principles = Annotated[
    Path | None,
    typer.Option(
        "--constitution",
        metavar="FILE",
        parser=user_path,
        help="Criticise and revise by these principles, as labelling.constitution=FILE.",
        show_default=False,
    ),
]


def label(
    config: ConfigFile, overrides: Overrides = None, constitution: Principles = None, debug: Debug = False
) -> None:
    """Label responses with a judge (the section labelling): pairs with soft labels, or revisions by a constitution.

    Example: tetrarch label configs/label.yaml labelling.budget.requests=100
    """
    with reported(debug) as report:
        said = [] if constitution is None else [f"labelling.constitution={str(constitution)!r}"]
        run = report.loaded(load_root(LabellingRun, config, [*(overrides or ()), *said]), overrides)
        from orchestrator.checks.label_inputs import prepare_label

        inputs = prepare_label(run)
        report.read(inputs)
        from orchestrator.stages.labelling import label_responses

        label_responses(run, inputs.records, inputs.constitution, inputs.api_key)
