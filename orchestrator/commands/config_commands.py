"""The commands that look and start nothing: `config`, `import-…`, `doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.commands.exit_codes import RUN_FAILED, reported
from orchestrator.commands.options import Debug, Overrides, user_path
from orchestrator.config.loading import dump_config, load_all
from orchestrator.config.roots import json_schema
from orchestrator.config.secrets import check_overrides
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.importing.importer import Imported


ImportedFile = Annotated[
    Path, typer.Argument(metavar="FILE", parser=user_path, help="A script with the command, or YAML of its keys.")
]


def import_openrlhf(file: ImportedFile, debug: Debug = False) -> None:
    """Turn a script of OpenRLHF's PPO into a configuration (on stdout); what it does not carry is told on stderr too.

    Example: tetrarch import-openrlhf train_ppo_llama_ray_70b.sh > mine.yaml
    """
    with reported(debug):
        from orchestrator.importing.openrlhf import import_openrlhf as read

        _print(read(file))


def import_verl(file: ImportedFile, debug: Debug = False) -> None:
    """Turn a script of verl's PPO into a configuration (on stdout); what it does not carry is told on stderr too.

    Example: tetrarch import-verl run_qwen2-7b_rm.sh > mine.yaml
    """
    with reported(debug):
        from orchestrator.importing.verl import import_verl as read

        _print(read(file))


def import_trl(file: ImportedFile, debug: Debug = False) -> None:
    """Turn TRL's PPO options into a configuration (on stdout); what it does not carry is told on stderr too.

    Example: tetrarch import-trl ppo_config.yaml > mine.yaml
    """
    with reported(debug):
        from orchestrator.importing.trl import import_trl as read

        _print(read(file))


def _print(imported: Imported) -> None:
    print(imported.text, end="")
    for remark in imported.remarks:
        typer.echo(str(remark), err=True)


def doctor(debug: Debug = False) -> None:
    """Look at versions, GPUs, memory, disk and Ray: green, or what to do. Exit code 1 if something is to be done.

    Example: RAY_ADDRESS=head:6379 tetrarch doctor
    """
    with reported(debug):
        from orchestrator.commands.doctor import examine

        findings = examine(Path())
    width = max(len(finding.what) for finding in findings)
    for finding in findings:
        mark = typer.style("to do", fg=typer.colors.RED) if finding.fix else typer.style("   ok", fg=typer.colors.GREEN)
        typer.echo(f"{mark}  {finding.what:{width}}  {finding.found}{'; ' + finding.fix if finding.fix else ''}")
    if any(finding.fix for finding in findings):
        raise typer.Exit(RUN_FAILED)


def show_config(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", parser=user_path, help="A YAML file.")] = None,
    overrides: Overrides = None,
    minimal: Annotated[bool, typer.Option("--minimal", help="Leave out what has its default.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema, for editors.")] = False,
    reference: Annotated[bool, typer.Option("--reference", help="Print all keys as Markdown tables.")] = False,
    debug: Debug = False,
) -> None:
    """Print the resolved configuration as YAML, secrets redacted; or which keys there are.

    Example: tetrarch config configs/smoke.yaml ppo.epochs=2
    """
    with reported(debug):
        if schema:
            text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
        elif reference:
            from orchestrator.config.key_reference import reference as all_keys

            text = all_keys().rstrip("\n")
        elif config is None:
            raise ConfigError("no configuration given; name a file, such as configs/smoke.yaml, or say --schema")
        else:
            check_overrides(overrides or ())
            runs = load_all(config, overrides or ())
            text = f"# what tetrarch {', '.join(runs)} read\n" + dump_config(*runs.values(), minimal=minimal).rstrip(
                "\n"
            )
        print(text)
