"""The commands that prove a run repeatable: `diff` of two runs, `replay` of a step, and `verify-resume`, which kills a
run on purpose."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.placement.plan import ranks_of
from cluster.role_table import ACTOR, CRITIC, KEEPER
from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import CommandName, ConfigFile, Debug, Overrides, RunFolder
from orchestrator.commands.training_table import TRAININGS, training_of
from orchestrator.config.base import RUN, BaseConfig
from orchestrator.config.loading import load_root
from orchestrator.config.roots import ROOTS
from orchestrator.config.run import RunConfig
from orchestrator.config.secrets import check_overrides
from orchestrator.errors import ConfigError
from orchestrator.run.resume_rules import rules_of

if TYPE_CHECKING:
    from orchestrator.stages.resume_proof import Kill, Proof

NOT_THE_SAME = 3
"""Exit code of a comparison that has found a difference."""
MANY = 1_000_000
"""More checkpoints than a run writes."""
ReplayedStep = Annotated[int, typer.Argument(metavar="STEP", min=1, help="There must be a checkpoint before it.")]


class TrainedByPpo(StrEnum):
    """The roles whose update can be computed alone."""

    ACTOR = ACTOR
    CRITIC = CRITIC


ReplayedRole = Annotated[
    TrainedByPpo | None,
    typer.Option(help="Only this role's update, from the samples that the run has kept.", show_default=False),
]
SecretsFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Lines KEY=VALUE with what the run's config.yaml does not hold because it is secret.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Every difference, as JSON.")]
ProofSteps = Annotated[
    int, typer.Option(min=2, help="Steps of each of the two runs (of the commands that count steps).")
]
KillAt = Annotated[
    list[str] | None,
    typer.Option(
        "--kill",
        metavar="VICTIM@STEP[+SHARE]",
        help="Kill driver, raylet, gcs or a rank such as actor-1 after a step, and a share of a step's time later.",
        show_default=False,
    ),
]
KillCount = Annotated[int, typer.Option(min=1, help="Number of random kills, if none is given with --kill.")]
KillSeed = Annotated[int, typer.Option(help="From which the random kills follow.")]
CheckpointEvery = Annotated[int, typer.Option(min=1, help="Steps between two checkpoints.")]
StartLimit = Annotated[float, typer.Option(min=1.0, help="Seconds in which each start of the command must end.")]


def diff(first: RunFolder, second: RunFolder, json: AsJson = False, debug: Debug = False) -> None:
    """Say where two runs part: configuration, versions, data, metrics, samples, evaluations, checkpoints, models.

    Exit code 0 if they are the same bit for bit, 3 if not. Example: tetrarch diff runs/smoke runs/smoke-again
    """
    with reported(debug):
        from orchestrator.run.run_difference import as_json, run_difference

        difference = run_difference(first, second)
        typer.echo(as_json(difference) if json else "\n".join(difference.lines))
    raise typer.Exit(NOT_THE_SAME if difference.first else 0)


def replay(
    run: RunFolder,
    step: ReplayedStep,
    overrides: Overrides = None,
    role: ReplayedRole = None,
    secrets: SecretsFile = None,
    limit_s: StartLimit = 3600.0,
    debug: Debug = False,
) -> None:
    """Compute one step of a PPO run again, from the checkpoint before it, and compare it bit for bit.

    In RUN-replay; the run itself is only read. Exit code 0 if the step is the same, 3 if not. Code that the run's
    config.yaml names is run.

    Example: tetrarch replay runs/tiny 7
    """
    with reported(debug):
        check_overrides(overrides or ())
        settings = [*(overrides or ()), *(_lines(secrets) if secrets else ())]
        from orchestrator.stages.replay import replayed

        run = run.resolve()
        folder = run.with_name(f"{run.name}-replay")
        what = f"the {role.value}'s update in step {step}" if role else f"step {step}"
        _say(f"computing {what} of {run} again, in {folder}")
        if role:
            from orchestrator.stages.role_replay import update_replayed

            difference = update_replayed(run, step, role.value, folder, settings, _say)
        else:
            difference = replayed(run, step, folder, settings, limit_s)
        typer.echo("\n".join(difference.lines))
    raise typer.Exit(NOT_THE_SAME if difference.first else 0)


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--secrets={file} cannot be read: {error}; name a file of lines KEY=VALUE") from None
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def verify_resume(
    config: ConfigFile,
    overrides: Overrides = None,
    command: CommandName = None,
    steps: ProofSteps = 4,
    kill: KillAt = None,
    kills: KillCount = 2,
    seed: KillSeed = 0,
    checkpoint_every: CheckpointEvery = 1,
    limit_s: StartLimit = 3600.0,
    debug: Debug = False,
) -> None:
    """Prove that a run survives: run unbroken, run again with kills and --resume after each, and compare both bit for
    bit.

    Both are in FOLDER-verify, by default with a checkpoint after every step. Exit code 0 if they are the same, 3 if
    not.

    Example: tetrarch verify-resume configs/tiny.yaml --steps 6 --kill critic-1@2+0.5 --kill driver@4
    """
    with reported(debug):
        from orchestrator.stages.resume_proof import SERVICES, Kill, random_kills

        check_overrides(overrides or ())
        name = training_of(config, overrides or (), command)
        proof, victims, last = _proof(name, config, overrides or (), steps, checkpoint_every, limit_s)
        planned = [Kill.parse(text) for text in kill or ()]
        planned = planned or random_kills(kills, _room(kills, steps), [*victims, *SERVICES], seed)
        _check_kills(planned, victims, last)
        _say(f"running {proof.folder}/whole unbroken, then {proof.folder}/broken with {', '.join(map(str, planned))}")
        step_s = proof.unbroken()
        _say(f"the unbroken run is done: {step_s:.1f} s a step")
        proof.broken(planned, step_s)
        difference = proof.compare()
        typer.echo("\n".join(difference.lines))
        if not proof.struck:
            raise ConfigError("no process was killed: the run had ended before; raise --steps, or kill earlier")
    raise typer.Exit(NOT_THE_SAME if difference.first else 0)


def _proof(
    name: str, file: Path, overrides: Sequence[str], steps: int, every: int, limit_s: float
) -> tuple[Proof, Sequence[str], int | None]:
    """The two runs of a training, with a checkpoint after `every` steps; the processes that can be killed; the last
    step, None if only the data determines it."""
    from orchestrator.stages.resume_proof import Proof

    plain = load_root(ROOTS[name], file, overrides)
    counts = rules_of(plain).steps(plain) is not None
    settings = [*overrides, f"checkpoint.every={every}", f"checkpoint.keep={steps if counts else MANY}"]
    settings += [f"steps={steps}"] if counts else []
    run = load_root(ROOTS[name], file, settings)
    if len(run.runs) > 1:
        raise ConfigError(f"{run.folder_key} gets {len(run.runs)} models, each of a run of its own; prove one of them")
    behind = "" if run.folder_key == "run_dir" else RUN
    folder = Path(f"{run.run_dir.removesuffix(behind)}-verify")
    words = [sys.executable, "-m", "orchestrator", name, str(file)]
    proof = Proof(words, settings, run.folder_key, folder, behind, limit_s, _say)
    return proof, victims_of(name, run), steps if counts else None


def victims_of(name: str, run: BaseConfig) -> list[str]:
    """The processes of a training that can be killed: the driver, and every rank that holds a model, engine or rows."""
    roles = dict.fromkeys(role for together in TRAININGS[name].roles(run) for role in together)
    models = [role for role in roles if role in run.model_roles]
    sizes = {role: ranks_of(run.placement, role) for role in models}
    sizes[KEEPER] = run.row_keepers if isinstance(run, RunConfig) and KEEPER in roles else 0
    return ["driver", *(f"{role}-{rank}" for role, size in sizes.items() for rank in range(size))]


def _room(kills: int, steps: int) -> int:
    if kills >= steps:
        raise ConfigError(f"--kills={kills}: each hits another step, and the last step ends the run; raise --steps")
    return steps


def _check_kills(kills: Sequence[Kill], victims: Sequence[str], last: int | None) -> None:
    """ConfigError for a kill of nobody, or after the step `last`."""
    from orchestrator.stages.resume_proof import SERVICES

    known = [*victims, *SERVICES]
    for kill in kills:
        if kill.victim not in known:
            raise ConfigError(f"--kill={kill}: there is no {kill.victim}; choose among {', '.join(known)}")
        if last is not None and kill.step >= last:
            raise ConfigError(f"--kill={kill}: the run ends with step {last}; kill earlier, or raise --steps")


def _say(text: str) -> None:
    typer.secho(text, bold=True, err=True)
