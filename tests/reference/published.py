"""Published seconds of RLHF steps beside what `tetrarch plan` predicts: `python -m tests.reference.published`.

`published_steps.yaml` flows in, the table of cluster/README.md flows out. Every row is a RunConfig of ours with the
row's settings, planned with the shipped factors; only the lengths are the row's own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from cluster.config import Efficiency
from cluster.estimate.lengths import fixed, lognormal
from orchestrator.config.loading import validate
from orchestrator.config.run import RunConfig
from orchestrator.planning.efficiency import load_efficiency
from orchestrator.planning.layout_planner import layout

FILE = Path(__file__).with_name("published_steps.yaml")
PHASES = ("generate", "score", "update", "push")


@dataclass(frozen=True, slots=True)
class Row:
    """One published step, and where its models' config.json are."""

    name: str
    data: dict[str, Any]
    models: Path

    @property
    def fitted(self) -> bool:
        """Whether the factors were chosen with it."""
        return bool(self.data.get("fitted"))

    @property
    def published(self) -> dict[str, float]:
        """`step` and phases → seconds."""
        return self.data["published"]


def rows(models: Path) -> list[Row]:
    """All rows; a config.json for each model is written below `models`."""
    data = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    for name, size in data["models"].items():
        folder = models / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(_llama(size)), encoding="utf-8")
    return [Row(name, row, models) for name, row in data["rows"].items()]


def predicted(row: Row, efficiency: Efficiency) -> dict[str, float]:
    """`step` and phases → seconds."""
    data = row.data
    rounds, padded = data.get("rounds", 1), data.get("padded", [1, 1])
    a_round, whole = _config(row, data["prompts"] // rounds), _config(row, data["prompts"])
    found = {
        "generate": rounds * layout(a_round, _lengths(row, efficiency)).step.phases["generate"],
        "score": rounds * layout(a_round, _lengths(row, efficiency, padded[0])).step.phases["score"],
    }
    phases = layout(whole, _lengths(row, efficiency, padded[1])).step.phases
    found |= {phase: phases[phase] for phase in ("update", "push")}
    return found if data.get("push_only") else {"step": sum(found.values()), **found}


def errors(efficiency: Efficiency, models: Path) -> dict[str, float]:
    """Row → how far its whole step is off, of those that publish it."""
    return {
        row.name: predicted(row, efficiency)["step"] / row.published["step"] - 1
        for row in rows(models)
        if "step" in row.published
    }


def table(efficiency: Efficiency, models: Path) -> str:
    """In Markdown: published → predicted, by phase."""
    lines = [
        "| row | actor | GPUs | step (s) | off by | generate | score | update | push | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows(models):
        found, published = predicted(row, efficiency), row.published
        cells = [_cell(published.get(phase), found.get(phase)) for phase in ("step", *PHASES)]
        if row.data.get("push_only"):
            cells[1:4] = ["", "", ""]
        told = ["step"] if "step" in published else list(published)
        error = sum(found[name] for name in told) / sum(published[name] for name in told) - 1
        off = f"{100 * error:+.0f} %".replace("-", "−")
        gpus = sum(group[0] * group[1] for group in row.data["groups"].values())
        kind = "fitted" if row.fitted else "held out"
        first = f"| {row.name} | {row.data['actor']} | {gpus} {row.data['card'].split('-')[0]} | {cells[0]} | {off} |"
        lines.append(f"{first} {' | '.join(cells[1:])} | {kind} |")
    return "\n".join(lines)


def summary(efficiency: Efficiency, models: Path) -> str:
    """Median and worst of the rows that are held out."""
    fitted = {row.name for row in rows(models) if row.fitted}
    held = {name: abs(off) for name, off in errors(efficiency, models).items() if name not in fitted}
    worst = max(held, key=lambda name: held[name])
    return (
        f"{len(held)} steps held out: median error {median(held.values()):.0%}, worst {held[worst]:.0%} ({worst}); "
        f"{sum(off <= 0.3 for off in held.values())} of them within 30%"
    ).replace("%", " %")


def _cell(published: float | None, found: float | None) -> str:
    if found is None:
        return ""
    return (
        f"{'' if published is None else f'{published:.4g} → '}{found:.3g}"
        if found < 1000
        else (f"{'' if published is None else f'{published:.0f} → '}{found:.0f}")
    )


def _llama(size: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": size["layers"],
        "hidden_size": size["hidden"],
        "intermediate_size": size["intermediate"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv_heads"],
        "head_dim": size.get("head_width", size["hidden"] // size["heads"]),
        "vocab_size": size["vocabulary"],
        "tie_word_embeddings": size.get("tied", False),
        "max_position_embeddings": 4096,
    }


def _config(row: Row, prompts: int) -> RunConfig:
    data = row.data

    def model(name: str) -> dict[str, str]:
        return {"path": str(row.models / name)}

    longest = data["prompt_tokens"][0] + data["response_tokens"][0]
    score, train = data.get("micro_tokens") or [samples * longest for samples in data.get("padded", [4, 4])]
    stage = {"stage": data.get("stage", 3)}
    trained = {
        "micro_batch_tokens": train,
        "gradient_checkpointing": data.get("checkpointing", True),
        "zero": {**stage, "offload_optimizer": data.get("offload_optimizer", False), "sleep": data.get("sleep", False)},
    }
    critic, reward = data.get("critic"), data.get("reward")
    nodes, groups = _placement(data)
    return validate(
        {
            "run_dir": "runs/published",
            "steps": 1,
            "device": "cuda",
            "dtype": "bfloat16",
            "prompts": {"train": {"path": "prompts.jsonl"}, "max_tokens": data["prompt_tokens"][0]},
            "actor": {"model": model(data["actor"]), **trained},
            **({"critic": {"model": model(critic), **trained}} if critic else {}),
            "reference": {"micro_batch_tokens": score, "zero": {"stage": 3}},
            "reward": {"type": "model", "model": model(reward), "micro_batch_tokens": score}
            if reward
            else {"type": "function", "path": "reward.py"},
            "rollout": {
                "prompts_per_step": prompts,
                "responses_per_prompt": data.get("responses_per_prompt", 1),
                "max_response_tokens": data["response_tokens"][0],
                "engine": {
                    "gpu_memory_utilization": data.get("engine_share", 0.9),
                    "sleep": data.get("engine_sleep", 0),
                    "enforce_eager": data.get("eager", False),
                    "max_sequences": data.get("at_once", 256),
                },
            },
            "ppo": {
                "epochs": 1,
                "mini_batches": data["optimizer_steps"] if prompts == data["prompts"] else 1,
                "advantage": {"type": "gae" if critic else "grpo" if "responses_per_prompt" in data else "reinforce++"},
            },
            "placement": {
                "type": "groups",
                "pools": {"pool": {"nodes": nodes, "gpus_per_node": 8, "accelerator": data["card"]}},
                "groups": groups,
            },
        }
    )


def _placement(data: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    groups, gpus = {}, 0
    for name, (nodes, per, roles, *engines) in data["groups"].items():
        gpus += nodes * per
        groups[name] = {"pool": "pool", "nodes": nodes, "gpus_per_node": per, "roles": roles.split()}
        if engines:
            groups[name]["engines"] = {"number": engines[0], "tensor_parallel_size": engines[1]}
    return -(-gpus // 8), groups


def _lengths(row: Row, efficiency: Efficiency, together: int = 1) -> Efficiency:
    """The factors with the row's lengths; `together` samples are padded to the longest of them."""
    (most, prompt), (limit, response) = row.data["prompt_tokens"], row.data["response_tokens"]
    spread = efficiency.response_spread
    prompts = lognormal(prompt, spread, 1, most)
    shape = {0.0: row.data["range"][0] / limit, 1.0: 1.0} if "range" in row.data else None
    responses = fixed(limit) if response == limit else lognormal(response, spread, 1, limit)
    if together == 1:
        change = {"prompt_share": prompt / most, "response_share": response / limit, "response_quantiles": shape}
        return efficiency.model_copy(update=change)
    share = together / (together + 1)  # the longest of so many, on average
    longest = row.data["range"][0] + share * (limit - row.data["range"][0]) if shape else responses.at(share)
    change = {
        "prompt_share": prompts.at(share) / most,
        "response_share": longest / limit,
        "response_spread": 0.0,
    }
    return efficiency.model_copy(update=change)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        factors = load_efficiency(Path(sys.argv[1])) if len(sys.argv) > 1 else load_efficiency()
        print(table(factors, Path(folder)))
        print()
        print(summary(factors, Path(folder)))
