"""`tetrarch export`: a run flows in, the Hugging Face folder of one of its trained models flows out."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from cluster.role_table import ACTOR, CRITIC, REWARD
from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import Debug, RunFolder, any_of, user_path
from orchestrator.errors import ConfigError

ExportedTo = Annotated[
    Path, typer.Argument(metavar="OUTPUT", parser=user_path, help="A folder that does not exist yet, or is empty.")
]
ExportedStep = Annotated[
    int | None, typer.Option("--step", metavar="N", min=1, help="The step [default: the newest]", show_default=False)
]
Best = Annotated[bool, typer.Option("--best", help="The step of the best evaluation that has a checkpoint.")]
ExportedRole = Annotated[
    str | None,
    typer.Option(
        "--role",
        metavar="ROLE",
        autocompletion=any_of(ACTOR, CRITIC, REWARD),
        help="actor, critic or reward [default: actor]",
        show_default=False,
    ),
]
PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub",
        metavar="NAME",
        help="Upload it to this repository of the model hub, which is made if it is not there.",
        show_default=False,
    ),
]
Public = Annotated[bool, typer.Option("--public", help="The repository may be public [default: it is private].")]


Yes = Annotated[bool, typer.Option("--yes", help="With --public: do not ask before the upload.")]


def export(
    run: RunFolder,
    output: ExportedTo,
    step: ExportedStep = None,
    best: Best = False,
    role: ExportedRole = None,
    push_to_hub: PushToHub = None,
    public: Public = False,
    yes: Yes = False,
    debug: Debug = False,
) -> None:
    """Write a trained model of a checkpoint as a Hugging Face folder with a model card. The run may go on meanwhile.

    Paths in the run's configuration are looked for from the current directory.

    Example: tetrarch export runs/smoke exported/critic --step 5 --role critic
    """
    with reported(debug):
        from orchestrator.checks.run_folders import check_output

        if step is not None and best:
            raise ConfigError("--step names a step, --best looks for one; say one of them")
        check_output(str(output), "OUTPUT", "", None)
        from orchestrator.stages.model_hub import hub_of, push

        if push_to_hub:
            hub_of(push_to_hub)
        asks = bool(push_to_hub) and public and not yes
        if asks:
            _check_can_ask()
        from orchestrator.stages.chosen_checkpoint import chosen_checkpoint
        from orchestrator.stages.model_export import StoredModel

        checkpoint = chosen_checkpoint(run, step, best=best)
        typer.echo(f"reading {checkpoint.path}", err=True)
        stored = StoredModel.open(checkpoint, role)
        stored.write(output)
        what = f"the {stored.role} of step {checkpoint.step}"
        typer.echo(f"{what} is in {output}", err=True)
        try:
            stored.describe(output, run)
        except ValueError as error:
            typer.echo(f"without a model card: {error}", err=True)
        if push_to_hub and (not asks or _may_upload(output)):
            typer.echo(f"uploaded: {push(output, push_to_hub, what, public=public)}", err=True)


def _check_can_ask() -> None:
    if not _can_ask():
        raise ConfigError(
            "--public asks before it uploads, and there is no terminal to ask on; export without --push-to-hub, read "
            "README.md in OUTPUT, then export with --public --yes"
        )


def _can_ask() -> bool:
    return sys.stdin.isatty()


def _may_upload(output: Path) -> bool:
    """Show the model card in the folder, and ask whether everybody may read it."""
    card = output / "README.md"
    typer.echo(card.read_text(encoding="utf-8") if card.is_file() else "(no model card)", err=True)
    with suppress(typer.Abort):  # Ctrl-C, or the end of the input
        if typer.confirm(f"Upload {output} for everybody to read, with this card?", err=True):
            return True
    typer.echo("not uploaded", err=True)
    return False
