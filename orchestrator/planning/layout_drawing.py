"""A planned layout as pictures: nodes × GPUs and their roles, the memory of each kind of GPU, the seconds of a step.

A PlannedLayout flows in, rich renderables (for the terminal and SVG) or plain values (for JSON) flow out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.config import GroupsPlacement
from cluster.counts import counted
from cluster.estimate.memory import GIB
from cluster.placement.plan import tensor_parallel_size
from cluster.role_table import ACTOR, ENGINES, row_of, trained_roles
from orchestrator.planning.planned_layout import TIGHT, GpuLoad, PlannedLayout
from orchestrator.planning.suggest import TIE, Suggestion


def draw(layout: PlannedLayout, fix: list[str] | None = None) -> RenderableType:
    """The map, the memory of each kind of GPU, what does not fit, and the overrides `fix` with which it would fit."""
    notes = [Text(f"note: {note}") for note in layout.notes]
    heading = [Text(f"{layout.title}:", style="bold underline")] if layout.title else []
    if not layout.gpus:
        return Group(*heading, _processes(layout), _hosts(layout), *_time(layout), *notes, *_verdict(layout, fix))
    counts = Counter(slot.role for slot in layout.plan.slots)
    ranks = ", ".join(f"{count} {_short(role)}" for role, count in counts.items())
    size = f"{counted(len(layout.gpus), 'GPU')}, {counted(layout.plan.nodes, 'node')}"
    title = Text(f"{size}: {ranks}", style="bold")
    pictures = (title, _map(layout), Text(), _memory(layout), _hosts(layout), Text(), *_time(layout))
    return Group(*heading, *pictures, *notes, *_verdict(layout, fix))


def draw_suggestions(found: Sequence[Suggestion], now: PlannedLayout) -> RenderableType:
    """A table of the best layouts beside the file's."""
    if not found:
        return Text("No layout of these GPUs fits: more or larger cards are needed.", style="red bold")
    same = f"within a rank, the difference is less than the prediction's own error ({TIE:.0%}); the simplest is first"
    table = Table(title="The fastest layouts that fit", caption=same, title_justify="left", pad_edge=False)
    table.add_column("rank", justify="right")
    table.add_column("s a step", justify="right")
    if now.price_per_step is not None:
        table.add_column("price", justify="right")
    table.add_column("who shares which GPUs")
    table.add_column("settings")

    def numbers(layout: PlannedLayout) -> list[str]:
        price = layout.price_per_step
        return [_seconds(layout.step.total), *([] if price is None else [_money(price)])]

    for one in found:
        table.add_row(str(one.rank), *numbers(one.layout), *_shape(one))
    own = next((str(one.rank) for one in found if one.ties(now)), "")
    table.add_row(own, *numbers(now), "as in the file", "does not fit" if now.shortages else "", style="dim")
    return table


def _short(role: str) -> str:
    return row_of(role).short or role


def _shape(suggestion: Suggestion) -> tuple[str, str]:
    """Groups and settings of a suggestion, each as a few short lines."""
    config = suggestion.config
    assert isinstance(config.placement, GroupsPlacement)
    engine, actor = config.rollout.engine, config.actor
    groups = [
        "+".join([*([_short(ENGINES)] if group.engines else []), *(_short(role) for role in group.roles)])
        + f" {group.nodes}x{group.gpus_per_node}"
        + (f" {group.pool}" if len(config.placement.pools) > 1 else "")
        for group in config.placement.groups.values()
    ]
    zeros = {role: config.section(role).zero for role in trained_roles() if role in config.model_roles}
    offloaded = [role for role, zero in zeros.items() if zero.offload_optimizer]
    asleep = [*(["engines"] if engine.sleep else []), *(role for role, zero in zeros.items() if zero.sleep)]
    settings = [
        f"TP {tensor_parallel_size(config.placement)}, {engine.gpu_memory_utilization:.0%} for vLLM",
        f"{actor.micro_batch_tokens} tokens (actor)",
        *([f"sleep: {', '.join(asleep)}"] if asleep else []),
        *([f"offload: {', '.join(offloaded)}"] if offloaded else []),
    ]
    return "\n".join(groups), "\n".join(settings)


def to_json(command: str, layouts: Sequence[PlannedLayout]) -> dict[str, Any]:
    """The layouts of a training as plain values, sizes in GiB: the last one, and in `before` those before it."""
    *before, last = layouts
    whole = {"command": command, **_values(last), "fits": not any(one.shortages for one in layouts)}
    return {**whole, "before": [_values(one) for one in before]}


def _values(layout: PlannedLayout) -> dict[str, Any]:
    return {
        "fits": not layout.shortages,
        "shortages": layout.shortages,
        "warnings": layout.warnings,
        "notes": list(layout.notes),
        "ranks": [
            {"role": s.role, "rank": s.rank, "node": s.node, "gpus": list(s.gpus), "share": s.share, "cpus": s.cpus}
            for s in layout.plan.slots
        ],
        "pools": list(layout.plan.pools),
        "seconds": layout.step.phases,
        "seconds_per": layout.step.unit,
        "tokens": {
            "prompt_mean": layout.step.prompt_tokens,
            "response_mean": layout.step.response_tokens,
            "response_longest": layout.step.lengths.longest if layout.step.lengths else layout.step.response_tokens,
        },
        "idle": {" + ".join(kind): layout.step.idle(kind) for kind in layout.step.busy},
        "price_per_step": layout.price_per_step,
        "gpus": [
            {
                "node": load.node,
                "gpu": load.gpu,
                "roles": [f"{slot.role} {slot.rank}" for slot in load.slots],
                "capacity_gib": load.capacity / GIB,
                "peak_gib": load.peak / GIB,
                "peak_phase": load.peak_phase,
                "phases": {
                    phase: {f"{role}: {item}": size / GIB for (role, item), size in load.phases[phase].items()}
                    for phase in layout.phases
                },
            }
            for load in layout.gpus
        ],
        "hosts": [
            {
                "node": host.node,
                "capacity_gib": host.capacity / GIB,
                "held": {f"{role}: {item}": size / GIB for (role, item), size in host.held.items()},
            }
            for host in layout.hosts
        ],
    }


def _map(layout: PlannedLayout) -> Table:
    """A table with a row per node and a cell per run of GPUs with the same roles."""
    table = Table(pad_edge=False)
    table.add_column("node", justify="right", no_wrap=True)
    table.add_column("GPUs", no_wrap=True)
    table.add_column("who lives there (ranks)")
    table.add_column("peak of a card", justify="right", no_wrap=True)
    for node, loads in groupby(layout.gpus, key=lambda load: load.node):
        runs = [list(run) for _, run in groupby(loads, key=lambda load: load.roles)]
        for number, run in enumerate(runs):
            gpus = f"{run[0].gpu}-{run[-1].gpu}" if len(run) > 1 else str(run[0].gpu)
            where = f"{node} {layout.plan.pools[node]}" if number == 0 else ""
            table.add_row(where, gpus, _who(layout, run), _fill(max(run, key=lambda load: load.peak)))
    return table


def _who(layout: PlannedLayout, run: list[GpuLoad]) -> Text:
    """The roles of neighbouring GPUs with their ranks; an engine with its tensor-parallel size."""
    text = Text()
    for role in run[0].roles:
        ranks = sorted({slot.rank for load in run for slot in load.slots if slot.role == role})
        span = f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0])
        width = max(len(slot.gpus) for load in run for slot in load.slots if slot.role == role)
        parallel = f" (TP {width})" if width > 1 else ""
        style = row_of(role).colour
        text.append("  " if text else "").append(f"{_short(role)} {span}{parallel}", style=style)
    return text


def _fill(load: GpuLoad) -> Text:
    share = load.peak / load.capacity
    style = "red bold" if not load.fits else "yellow" if share > TIGHT else "green"
    return Text(f"{load.peak / GIB:.0f} of {load.capacity / GIB:.0f} GiB", style=style)


def _memory(layout: PlannedLayout) -> Table:
    """A table of memory: a column per kind of GPU, a row per phase."""
    kinds: dict[tuple[str, ...], GpuLoad] = {}
    for load in layout.gpus:
        if load.roles not in kinds or load.peak > kinds[load.roles].peak:
            kinds[load.roles] = load
    table = Table(title="GiB on a card, by phase", title_justify="left", pad_edge=False)
    table.add_column("phase", no_wrap=True)
    for kind in kinds:
        table.add_column("+".join(_short(role) for role in kind), justify="right")
    for phase in layout.phases:
        sums = [sum(load.phases[phase].values()) / GIB for load in kinds.values()]
        cells = [
            Text(f"{size:.1f}", style="bold" if load.peak_phase == phase else "")
            for size, load in zip(sums, kinds.values(), strict=True)
        ]
        table.add_row(phase, *cells)
    return table


def _hosts(layout: PlannedLayout) -> Text:
    fullest = max(layout.hosts, key=lambda host: sum(host.held.values()))
    held = sum(fullest.held.values()) / GIB
    which = "fullest host" if len(layout.hosts) > 1 else "host memory"
    what = " (processes; what is offloaded, asleep or saved)" if layout.gpus else ""
    return Text(f"{which}: {held:.0f} of {fullest.capacity / GIB:.0f} GiB{what}")


def _time(layout: PlannedLayout) -> list[RenderableType]:
    """Seconds per phase, idle time per kind of card, and price."""
    step = layout.step
    phases = ", ".join(f"{phase} {_seconds(seconds)}" for phase, seconds in step.phases.items())
    prompts = f"prompts of {step.prompt_tokens:.0f}, " if step.prompt_tokens else ""
    which = f"{prompts}{step.items} of {step.response_tokens:.0f} tokens"
    parts = f", of it {phases}" if len(step.phases) > 1 else ""
    lines = [Text(f"seconds per {step.unit} ({which}): {_seconds(step.total)}{parts}")]
    if step.lengths is not None:
        half, longest = step.lengths.at(0.5), step.lengths.longest
        told = f"half of the {step.items} have up to {half:.0f} tokens, the longest {longest:.0f}"
        lines.append(Text(f"lengths: {told}; {step.lengths_from}"))
    if layout.gpus and len(step.phases) > 1:
        idle = ", ".join(f"{'+'.join(map(_short, kind))} {step.idle(kind):.0%}" for kind in step.busy)
        lines.append(Text(f"cards idle: {idle}"))
    if layout.price_per_step is not None:
        each, steps = layout.price_per_step, layout.steps
        run = "" if steps is None else f", {_money(each * steps)} for {counted(steps, 'step')}"
        lines.append(Text(f"price: {_money(each)} per {step.unit}{run}"))
    return list(lines)


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}" if seconds >= 0.1 else f"{seconds:.1g}"


def _money(amount: float) -> str:
    return f"{amount:,.2f}"


def _verdict(layout: PlannedLayout, fix: list[str] | None) -> list[Text]:
    warnings = [Text(f"warning: {line}", style="yellow") for line in layout.warnings]
    if not layout.shortages:
        return [*warnings, Text("It fits.", style="green bold")]
    lines = [Text("It does not fit:", style="red bold"), *(Text(f"  {line}") for line in layout.shortages)]
    if fix is None:
        search = ", or look for another layout with --suggest" if len(layout.sizes) > 1 else ""
        hosts = all(line.startswith("host ") for line in layout.shortages)
        where = "a larger machine" if hosts or not layout.gpus else f"more GPUs{search}"
        return [*lines, Text(f"No change of settings makes it fit: give the roles that are short {where}.")]
    return [*lines, Text("The smallest change that makes it fit: " + " ".join(fix), style="bold")]


def _processes(layout: PlannedLayout) -> Table:
    """A table for runs without GPUs: a row per role."""
    table = Table(title="No GPUs: processes on this machine", title_justify="left", pad_edge=False)
    for column in ("role", "ranks", "CPU threads of each", "parameters", "GiB of all"):
        table.add_column(column, justify="left" if column == "role" else "right")
    held = layout.hosts[0].held
    for role in layout.plan.roles:
        slots = layout.plan.of(role)
        size = layout.sizes.get(ACTOR if role == ENGINES else role)
        memory = sum(amount for (owner, _), amount in held.items() if owner == role) / GIB
        parameters = f"{size.parameters:,}" if size else ""
        table.add_row(_short(role), str(len(slots)), str(slots[0].threads), parameters, f"{memory:.1f}")
    return table
