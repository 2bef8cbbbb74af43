"""The tables of architectures in `roles/README.md`: measured here, and written by `make architectures`.

Without names as arguments all of `architectures.NAMES` are measured. Lines take the place of those that the README has
of the same names.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from orchestrator.checks.engine_fit import check_engine
from orchestrator.checks.problems_together import Problems
from orchestrator.checks.role_models import check_role_models
from orchestrator.config.loading import load_config
from orchestrator.errors import ConfigError
from orchestrator.sizes.model_sizes import check_adapters
from roles.rollout import RolloutEngine
from tests.integration import architectures
from tests.integration.architecture_cases import (
    Adapted,
    Policy,
    Values,
    trained_adapters,
    trained_critic,
    trained_policy,
)
from tests.integration.engines import ENVIRONMENT, engine_setup
from tests.integration.hosted import Host, HostClient, hosts
from tests.integration.ranks import Ranks
from tests.integration.sharded_cases import TEMPERATURE

ROOT = Path(__file__).parents[2]
README = ROOT / "roles/README.md"
WORKS = "| Architecture | Log-probabilities | Gradient | After a push | Saved | Values | LoRA |"
REFUSED = "| Architecture | Refused as | Because |"

NATS = 1e-4
"""Largest difference of log-probabilities and values that rounding in float32 explains."""
GRADIENT = 1e-3


@dataclass(frozen=True, slots=True)
class Row:
    """One architecture."""

    name: str
    policy: Policy | None = None
    values: Values | None = None
    adapted: Adapted | None = None
    refused: dict[str, str] = field(default_factory=dict)
    """`policy`, `critic`, `LoRA` or `engine on CPU` → why it is refused before the start."""

    def faults(self) -> list[str]:
        """What is not as it should be."""
        engine = architectures.ROUNDED.get(self.name, NATS)
        expected = {part for part, names in architectures.REFUSED.items() if self.name in names}
        found = [f"refused: {self.refused}, expected: {expected}"] if expected != self.refused.keys() else []
        if self.policy:
            allowed = {"gradient": GRADIENT, "moved": float("inf"), "before": engine, "pushed": engine}
            found += _over("policy", self.policy, allowed)
            differing = [name for name in self.policy.differing if engine == NATS or "act_fn" not in name]
            found += [f"policy: {name} differs in the engine" for name in differing]
            found += ["policy: the update moves nothing"] if self.policy.moved < 100 * NATS else []
        if self.values:
            found += _over("critic", self.values, {"gradient": GRADIENT})
        if self.adapted:
            found += _over("LoRA", self.adapted, {"pushed": engine})
            found += [f"LoRA: {name} is not trained" for name in self.adapted.idle]
            missed = [name for name in self.adapted.others if not re.search(r"\.(experts|gate|router)\b", name)]
            found += [f"LoRA: {name} has no adapter" for name in missed]
        return found

    def lines(self) -> Iterator[str]:
        """Of the two tables."""
        for part, why in self.refused.items():
            yield f"| {self.name} | {part} | {why} |"
        if self.policy:
            given, values, adapted = self.policy, self.values, self.adapted
            engine = None if given.before is None or given.pushed is None else max(given.before, given.pushed)
            numbers = [given.packed, given.gradient, engine, given.reloaded, values and values.reloaded]
            cells = ["–" if number is None else f"{number:.0e}" for number in numbers]
            worst = adapted and max(adapted.reloaded, adapted.pushed or 0)
            cells.append(f"{adapted.layers} layers, {worst:.0e}" if adapted else "–")
            yield f"| {self.name} | {' | '.join(cells)} |"


def _over(part: str, measured: object, allowed: dict[str, float]) -> list[str]:
    numbers = {name: getattr(measured, name) for name in type(measured).__dataclass_fields__}  # type: ignore[attr-defined]
    return [
        f"{part}: {name} is {number:.2g}"
        for name, number in numbers.items()
        if isinstance(number, float) and not number <= allowed.get(name, NATS)
    ]


def door(model: Path, part: str = "policy", device: str = "cpu") -> str | None:
    """Why `tetrarch train` refuses `model` before the start, in the words of its error."""
    run = yaml.safe_load((ROOT / "configs/tiny.yaml").read_text(encoding="utf-8"))
    run["device"] = device
    run["actor"]["model"] = {"path": str(model)}
    run["actor"]["lora"] = {"rank": 4} if part == "LoRA" else None
    run["reward"] = {"type": "function", "path": "configs/tiny/reward.py"}
    run["prompts"]["max_tokens"] = 112  # and 16 generated ones: as the engines of the tests
    if part == "critic":
        run["critic"] = {"initialise_from": "policy"}
    else:
        del run["critic"]
        run["ppo"]["advantage"], run["rollout"]["responses_per_prompt"] = {"type": "grpo"}, 2
    (model.parent / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    try:
        config = load_config(model.parent / "run.yaml")
        problems = Problems()
        actor = check_role_models(config, problems)
        problems.end()
        check_engine(config, actor)
        check_adapters(config)
    except ConfigError as error:
        return (
            str(error)
            .splitlines()[0]
            .replace(f"{model}", "…")
            .removeprefix("actor.model.path=…")
            .lstrip(": ")
            .partition("; ")[0]
        )
    return None


def measured(name: str, rank: Ranks, folder: Path) -> Row:
    """All that is known of the architecture `name`."""
    model = architectures.save(name, folder / "model")
    device = "cuda" if name in architectures.REFUSED_ON_CPU else "cpu"
    parts = {part: door(model, part, device) for part in ("policy", "critic", "LoRA")}
    refused = {part: why for part, why in parts.items() if why}
    if "policy" in refused:
        return Row(name, refused={"policy": refused["policy"]})
    values = None if "critic" in refused else rank.call(trained_critic, model)[0]
    if device == "cuda":
        adapted = None if "LoRA" in refused else rank.call(trained_adapters, model, None)[0]
        policy, why = rank.call(trained_policy, model, None)[0], door(model)
        return Row(name, policy, values, adapted, refused | ({"engine on CPU": why} if why else {}))
    with hosts(folder, RolloutEngine, [[engine_setup(model, temperature=TEMPERATURE)]], ENVIRONMENT) as (engine,):
        client = HostClient([engine.address])
        try:
            policy = rank.call(trained_policy, model, client)[0]
            adapted = None if "LoRA" in refused else rank.call(trained_adapters, model, client)[0]
        except RuntimeError as error:
            raise RuntimeError(f"{error}\nThe engine:\n{_end_of(engine)}") from None
    return Row(name, policy, values, adapted, refused)


def _end_of(engine: Host) -> str:
    return engine.log.read_text()[-3000:]


@contextmanager
def trainer() -> Iterator[Ranks]:
    """The process that trains all architectures, one after the other."""
    rank = Ranks(1)
    try:
        yield rank
    finally:
        rank.close()


def table(text: str, header: str) -> dict[str, list[str]]:
    """Name → lines of the table with this `header`, as a README has it."""
    lines = text.partition(f"{header}\n")[2].partition("\n\n")[0].splitlines()[1:]
    found: dict[str, list[str]] = {}
    for line in lines:
        found.setdefault(line.split(" | ")[0].removeprefix("| "), []).append(line)
    return found


def updated(text: str, rows: Iterable[Row]) -> str:
    """A README with new lines for `rows`."""
    rows = list(rows)
    for header in (WORKS, REFUSED):
        kept = table(text, header)
        columns = header.count("|")
        for row in rows:
            kept[row.name] = [line for line in row.lines() if line.count("|") == columns]
        body = [line for name in architectures.NAMES for line in kept.get(name, [])]
        before, _, rest = text.partition(f"{header}\n")
        after = rest.partition("\n\n")[2]
        text = "\n".join([before + header, "|---" * (columns - 1) + "|", *body]) + "\n\n" + after
    return text


def main(names: list[str]) -> int:
    """The number of architectures with a fault."""
    wrong = 0
    with trainer() as rank:
        for name in names or architectures.NAMES:
            try:
                with tempfile.TemporaryDirectory() as folder:
                    row = measured(name, rank, Path(folder))
            except RuntimeError as error:
                print(f"{name}: {error}")
                wrong += 1
                continue
            print(*row.lines(), *(f"FAULT: {fault}" for fault in row.faults()), sep="\n", flush=True)
            wrong += bool(row.faults())
            README.write_text(updated(README.read_text(encoding="utf-8"), [row]), encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
