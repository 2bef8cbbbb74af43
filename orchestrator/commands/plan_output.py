"""What the commands show of a plan, and whether they go on with it.

A RunConfig flows in; drawings flow to a console, a PlacementError flows out where the run would not fit. Called by
`orchestrator.commands.app`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cluster.errors import PlacementError
from orchestrator.config.run import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.config import Efficiency
    from cluster.runtime.jobs import RayJobs
    from orchestrator.planning.planned_layout import PlannedLayout


def on_cluster(run: RunConfig, jobs: RayJobs | None = None) -> RunConfig:
    """`--cluster auto`: the run on the pools as they are; `jobs`: of that cluster, not of the one at RAY_ADDRESS."""
    from orchestrator.commands.running_cluster import describe_pools, on_nodes, on_running_cluster

    run = on_running_cluster(run) if jobs is None else on_nodes(run, jobs.nodes())
    for line in describe_pools(run):
        typer.echo(line, err=True)
    return run


def show_suggestions(run: RunConfig, planned: PlannedLayout, console: Console, factors: Efficiency | None) -> None:
    """The best layouts, and the YAML of the first."""
    import yaml

    from orchestrator.planning.layout_drawing import draw_suggestions
    from orchestrator.planning.suggest import suggest

    with console.status("searching"):
        found = suggest(run, factors)
    console.print(draw_suggestions(found, planned))
    if found:
        console.print("The first of them, to write into the file:")
        print(yaml.safe_dump(found[0].changes(), sort_keys=False), end="")


def draw_plan(run: RunConfig, console: Console, factors: Efficiency | None = None) -> PlannedLayout:
    """The layout of a run, drawn; with the smallest change that would make it fit, if it does not."""
    from orchestrator.planning.layout_drawing import draw
    from orchestrator.planning.layout_planner import layout, smallest_change

    planned = layout(run, factors)
    console.print(draw(planned, smallest_change(run) if planned.shortages else None))
    return planned


def check_plan(run: RunConfig, force: bool) -> None:
    """Draw the layout; PlacementError if it does not fit, unless `force`."""
    from rich.console import Console

    from orchestrator.sizes.model_sources import UnknownModel

    try:
        planned = draw_plan(run, Console(stderr=True))
    except UnknownModel as unknown:
        typer.echo(f"no plan: {unknown}", err=True)
        return
    if planned.shortages and not force:
        raise PlacementError("see the plan above; change the settings, or say --force")
