"""`tetrarch init`: answers to a few questions flow in, a commented configuration that trains flows out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from cluster.placement.accelerators import ACCELERATORS
from orchestrator.commands.exit_codes import reported
from orchestrator.commands.options import Debug, user_path
from orchestrator.config.loading import validate
from orchestrator.config.yaml_text import parse_yaml, to_yaml
from orchestrator.errors import ConfigError
from roles.errors import ModelError
from roles.model_files.config_json import config_json, context_of, text_part

TEXT = """\
# PPO: a model learns to answer {prompts} so that {reward} gives high scores.
#
# Look:  tetrarch data {file}      what the model reads
#        tetrarch plan {file}      does it fit, and what does a step cost
# Start: tetrarch train {file}     after a stop: the same with --resume
# What is not said here has its default: tetrarch config {file} prints every key.
run_dir: {run_dir} # all that the run leaves: report.html, metrics, checkpoints, the trained model in actor/
steps: 100
{device}
prompts:
  train: {{path: {prompts}}} # rows such as {{"prompt": "..."}}; other columns are the reward's
  max_tokens: {prompt_tokens} # of a prompt; longer ones:
  too_long: skip # or: error

actor: # the model that learns, and as it was before: the reference
  model: {{path: {model}}}{actor}
critic: # predicts the scores
{critic}
reward:
{reward_lines}

rollout: # a step: {samples} responses are written, scored and learned from
  prompts_per_step: {samples}
  max_response_tokens: {response_tokens}{engine}

ppo:
  kl: {{controller: {{type: adaptive, target: 6.0}}}} # nats a response that the model may move from the reference
{placement}"""
TURNS = """
placement: # all roles and the engines share the GPUs, and take turns
  type: groups
  pools:
    gpus: {{nodes: {nodes}, gpus_per_node: {gpus}, accelerator: {accelerator}}}
  groups:
    all:
      pool: gpus
      nodes: {nodes}
      gpus_per_node: {gpus}
      roles: [{roles}]
      engines: {{number: {engines}}}
"""


@dataclass(frozen=True, slots=True)
class Answers:
    """What the questions ask for."""

    model: str
    prompts: str
    reward: str
    """A Python file, a URL, or a reward model."""
    gpus: int
    """On each node; 0: the run is on this machine's CPUs."""
    nodes: int
    accelerator: str


def _free(file: Path) -> Path:
    """Refuse a file that is there before anything is asked."""
    if file.exists():
        raise typer.BadParameter(f"{file} exists; name another file, or remove it")
    return file


def init(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", parser=user_path, callback=_free, help="The configuration to write.")
    ],
    model: Annotated[
        str, typer.Option(prompt="Model to train (a Hugging Face folder or hub name)", help="The model to train.")
    ],
    prompts: Annotated[
        str, typer.Option(prompt="Prompts (a file of JSON lines with a column prompt)", help="A file of prompts.")
    ],
    reward: Annotated[
        str,
        typer.Option(prompt="Reward (a Python file, a URL, or a reward model)", help="What scores the responses."),
    ],
    gpus: Annotated[int, typer.Option(prompt="GPUs in each machine (0: train on this machine's CPUs)", min=0, max=16)],
    nodes: Annotated[int, typer.Option(min=1, help="Machines with that many GPUs.")] = 1,
    accelerator: Annotated[str, typer.Option(help="Their kind, as `tetrarch plan` names it.")] = "H100-80GB",
    debug: Debug = False,
) -> None:
    """Write a commented configuration for PPO. What no option says is asked.

    Example: tetrarch init mine.yaml --model models/sft --prompts data/train.jsonl --reward my_reward.py --gpus 8
    """
    with reported(debug):
        if nodes > 1 and not gpus:
            raise ConfigError(f"--nodes={nodes} needs --gpus of 1 or more: a run on CPUs has one machine")
        text = written(file, Answers(model, prompts, reward, gpus, nodes, accelerator))
        validate(parse_yaml(text), str(file))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    typer.echo(f"{file} is written. Next: tetrarch plan {file}, then tetrarch train {file}")


def written(file: Path, answers: Answers) -> str:
    """The text of the configuration. ConfigError for a GPU that the planner does not know."""
    if answers.gpus and answers.accelerator not in ACCELERATORS:
        raise ConfigError(f"--accelerator={answers.accelerator}: must be one of {', '.join(ACCELERATORS)}")
    kind = _reward(answers.reward)
    cards = answers.gpus * answers.nodes
    roles = ["actor", "critic", "reference", *(["reward"] if kind["type"] == "model" else [])]
    large = "\n  gradient_checkpointing: true\n  micro_batch_tokens: 8192" if cards else ""
    places = {"nodes": answers.nodes, "gpus": answers.gpus, "accelerator": answers.accelerator}
    prompt_tokens, response_tokens = _lengths(answers.model)
    return TEXT.format(
        file=file,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        model=_quoted(answers.model),
        prompts=_quoted(answers.prompts),
        reward=answers.reward,
        run_dir=_quoted(f"runs/{file.stem}"),
        device="device: cuda\ndtype: bfloat16\n" if cards else "device: cpu\n",
        actor=large,
        critic=f"  initialise_from: policy{large}",
        reward_lines="\n".join(f"  {line}" for line in to_yaml(kind).splitlines()),
        samples=512 if cards else 32,
        engine="\n  engine: {gpu_memory_utilization: 0.35, sleep: 1}" if cards else "",
        placement=TURNS.format(**places, engines=cards, roles=", ".join(roles)) if cards else "",
    )


def _lengths(model: str) -> tuple[int, int]:
    """Most tokens of a prompt and of a response: fewer where the model is a folder whose context is short."""
    folder = Path(model).expanduser()
    try:
        context = context_of(text_part(config_json(folder))) if (folder / "config.json").is_file() else None
    except ModelError as error:
        raise ConfigError(f"--model={model}: {error}") from None
    if context is not None and context < 3:
        raise ConfigError(
            f"--model={model}: its config.json allows sequences of {context} tokens; at least 3 are needed"
        )
    response = min(256, (context or 768) // 3)
    return min(512, (context or 768) - response), response


def _reward(said: str) -> dict[str, object]:
    if said.startswith(("http://", "https://")):
        return {"type": "remote", "urls": [said]}
    if said.endswith(".py"):
        return {"type": "function", "path": said}
    return {"type": "model", "model": {"path": said}}


def _quoted(text: str) -> str:
    """A text as YAML inside braces."""
    return json.dumps(text, ensure_ascii=False)
