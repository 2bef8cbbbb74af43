"""The command `tetrarch`: arguments flow in, a command is called, an exit code flows out.

Exit codes: 0 done, 1 the run failed, 2 the configuration (or the placement it asks for) is wrong, 130 stopped by
Ctrl-C, 141 nobody reads the output any more, 143 ended by SIGTERM. Errors go to stderr as one block without a
traceback; the traceback of a failed run goes to `<run_dir>/logs/driver.log`, and is shown with `--debug`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orchestrator.commands.config_commands import doctor, import_openrlhf, import_trl, import_verl, show_config
from orchestrator.commands.data_command import show_data
from orchestrator.commands.exit_codes import READER_GONE
from orchestrator.commands.export_command import export
from orchestrator.commands.init_command import init
from orchestrator.commands.label_command import label
from orchestrator.commands.pipeline_command import pipeline
from orchestrator.commands.plan_command import show_plan
from orchestrator.commands.proof_commands import diff, replay, verify_resume
from orchestrator.commands.report_command import report
from orchestrator.commands.runs_command import runs
from orchestrator.commands.serve_commands import best_of_n, serve
from orchestrator.commands.trace_command import trace
from orchestrator.commands.train_commands import evaluate, submit, training_command
from orchestrator.commands.training_table import TRAININGS
from orchestrator.commands.view_command import view
from roles.proxies import spare_loopback

LONG = 1000
"""More characters than the first sentence of a command's help has."""


class WholeHelp(TyperGroup):
    """The commands and the whole first sentence of each, in as many lines as it takes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        commands = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(LONG)) for name, command in commands if command])


app = typer.Typer(
    name="tetrarch",
    no_args_is_help=True,
    cls=WholeHelp,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS: dict[str, Callable[..., None]] = {
    **{name: training_command(name) for name in TRAININGS},
    "init": init,
    "submit": submit,
    "evaluate": evaluate,
    "export": export,
    "data": show_data,
    "label": label,
    "serve": serve,
    "best-of-n": best_of_n,
    "pipeline": pipeline,
    "plan": show_plan,
    "runs": runs,
    "report": report,
    "view": view,
    "trace": trace,
    "diff": diff,
    "replay": replay,
    "verify-resume": verify_resume,
    "import-openrlhf": import_openrlhf,
    "import-verl": import_verl,
    "import-trl": import_trl,
    "doctor": doctor,
    "config": show_config,
}
"""In the order in which `--help` lists them."""
for name, command in COMMANDS.items():
    app.command(name)(command)


def _tell_version(asked: bool) -> None:
    if asked:
        from orchestrator.stages.run_facts import product

        typer.echo(product())
        raise typer.Exit


@app.callback()
def options(
    told: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train a language model with PPO: actor, critic, reward and reference on Ray, vLLM and DeepSpeed."""


def main() -> None:
    """The entry point of `tetrarch` and of `python -m orchestrator`."""
    code: object = 0
    # Imports make a million objects that stay; by default, looking for garbage among them takes a seventh of the time.
    gc.set_threshold(50_000)
    spare_loopback(os.environ)
    try:
        app()
    except SystemExit as end:
        code = end.code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # its reader, such as `head`, has gone: that is no error of a command that prints
            code = code or READER_GONE
    # Everything has been ended and written; Ray's threads may crash while the interpreter takes itself apart.
    os._exit(code if isinstance(code, int) else int(code is not None))
