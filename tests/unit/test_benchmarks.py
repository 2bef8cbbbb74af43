"""Every benchmark runs, in small and on the wiring tests' stage (plain objects for groups, engines and DeepSpeed): that
its inputs are still what the program takes. Its figures are nobody's test."""

from __future__ import annotations

import json
import queue
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from configs.tiny.inputs import model_config, tokenizer
from orchestrator.config.loading import dump_config, load_config
from orchestrator.config.serving import ServingConfig
from orchestrator.groups.recovery import Recovery
from orchestrator.planning.layout_planner import layout
from orchestrator.stages.http_routes import policy_app
from orchestrator.stages.http_server import answering, listening, url_of
from orchestrator.stages.prompt_reader import PromptReader
from orchestrator.stages.serving_desk import Desk
from orchestrator.timeline.trace_file import TRACE_FILE, TraceFile
from tests.benchmarks import (
    between_steps,
    driver_bytes,
    gpu,
    long_context,
    lora,
    plan_order,
    ppo_step,
    samples_written,
    serving_load,
    timeline,
    viewer_answers,
)
from tests.unit.orchestrator.stages.served import EchoEngines, Letters, working
from tests.unit.wiring.engines import FakeLLM, PlainDeepSpeed
from tests.unit.wiring.stage import Seen, stage

FOLDER = Path(ppo_step.__file__).parent
PACKAGE = "tests.benchmarks."


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    """Runs a benchmark's command line; the words of each line that it prints."""

    def run(module: Any, *arguments: object) -> list[list[str]]:
        threads = torch.get_num_threads()
        monkeypatch.setattr(sys, "argv", [module.__file__, *map(str, arguments)])
        import deepspeed  # noqa: F401  (tells once, on stdout, which accelerator it has found)

        capfd.readouterr()
        try:
            module.main()
        finally:
            torch.set_num_threads(threads)
        return [line.split() for line in capfd.readouterr().out.splitlines()]

    return run


def numbers(words: list[str]) -> list[float]:
    return [float(word) for word in words if re.fullmatch(r"-?\d+(\.\d+)?", word)]


def test_the_benchmark_of_a_ppo_step(shown: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    written, unguarded = ppo_step.configuration, {"canary": {"enabled": False}}  # a stand-in's numbers are made up
    monkeypatch.setattr(ppo_step, "configuration", lambda *said: {**written(*said), **unguarded})
    with alone() as seen:
        heading, *_, row = shown(ppo_step, "--only", "float32/3/2", "--steps", 2)
    assert heading == ["case", "s/step", "floor", "samples/s", "phases", "(s)"]
    assert row[0] == "float32/3/2" and {"generate", "score", "update", "push"} <= set(row)
    assert all(number >= 0 for number in numbers(row)) and len(numbers(row)) >= 7
    batches = seen.llms[0].batches
    assert [len(batch) for batch in batches] == [ppo_step.PROMPTS] * 3
    assert {(answer.params.min_tokens, answer.params.max_tokens) for batch in batches for answer in batch} == {(3, 3)}


SECONDS_OF_A_PEER = "import os, sys\nfor line in sys.stdin: os.write(int(sys.argv[4]), b'100.0\\n')"


def test_the_benchmark_of_a_ppo_step_beside_a_peer(
    shown: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, unguarded = ppo_step.configuration, {"canary": {"enabled": False}}
    monkeypatch.setattr(ppo_step, "configuration", lambda *said: {**written(*said), **unguarded})
    monkeypatch.setattr(ppo_step, "TRL", ("-c", SECONDS_OF_A_PEER))
    with alone() as seen:
        heading, *_, row = shown(ppo_step, "--only", "float32/3/2", "--steps", 2, "--peer")
    assert heading == ["case", "s/step", "floor", "TRL", "ratio", "load"]
    whole, _, other, ratio, _ = numbers(row)
    assert other == 100 and ratio == pytest.approx(100 / whole, rel=0.5), "whole is printed with two digits"
    assert len(seen.llms[0].batches) == 3, "two, and one that is not counted"


def test_the_turns_of_two_are_alternated() -> None:
    order: list[str] = []
    ours = lambda: (order.append("ours"), {"time/step_s": float(len(order))})[1]  # noqa: E731
    theirs = lambda: (order.append("theirs"), float(len(order)))[1]  # noqa: E731
    pairs = ppo_step.compare(ours, theirs, 2)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert pairs == [(4.0, 3.0), (5.0, 6.0)]


def test_a_peer_that_ends_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo_step, "TRL", ("-c", "raise SystemExit('no such option')"))
    with ppo_step.peer(tmp_path, "float32/3/1", 1) as step:
        while "no such option" not in (tmp_path / "trl.log").read_text():
            time.sleep(0.05)
        time.sleep(0.5)  # its end of the pipe is closed then
        with pytest.raises(RuntimeError, match="no such option"):
            step()


@pytest.mark.slow
def test_trl_takes_the_steps_that_are_asked_for(tmp_path: Path) -> None:
    ppo_step.write_models(tmp_path)
    with ppo_step.peer(tmp_path, "float32/3/2", 2) as step:
        assert 0 < step() < 600 and 0 < step() < 600
        with pytest.raises(RuntimeError):
            step()


def test_the_benchmark_of_the_bytes_through_the_driver(shown: Callable[..., list[list[str]]]) -> None:
    """Two tiny steps."""
    heading, *calls, together, both, each, memory = shown(
        driver_bytes, "--rows", 4, "--tokens", 8, "--ranks", 2, "--steps", 2
    )
    assert heading[:3] == ["call", "sent", "MB"]
    assert [call for call, *_ in calls] == [
        "rollout.stream",
        *("actor.logprobs", "reference.reference_logprobs", "critic.values", "reward.score"),
        *("critic.update", "actor.update", "actor.push"),
    ]
    assert sum(numbers(together)) == pytest.approx(numbers(both)[0], abs=0.002)
    assert numbers(each)[0] == pytest.approx(numbers(both)[0] * 1e6 / 4, rel=0.2) and memory[0] == "most"


def test_with_keepers_the_driver_sees_no_rows(shown: Callable[..., list[list[str]]]) -> None:
    """Eight responses to each prompt of 250 tokens: what the driver is told of one does not grow with its length."""
    size = ("--rows", 256, "--tokens", 1000, "--ranks", 2, "--responses", 8)
    told = {}
    for keepers in (0, 2):
        _, *lines = shown(driver_bytes, *size, "--keepers", keepers)
        told[keepers] = {line[0]: float(line[-2]) for line in lines if line[-1] == "bytes"}["of"]
        calls = [line[0] for line in lines if "." in line[0]]
        assert ("keeper.share" in calls) == ("actor.update_from" in calls) == bool(keepers)
    assert told[2] < 1000 and told[0] > 30_000


def test_the_seconds_of_the_driver_are_told(
    monkeypatch: pytest.MonkeyPatch, shown: Callable[..., list[list[str]]]
) -> None:
    kept = list[Any]()
    store = SimpleNamespace(
        init=lambda address, **options: None, put=lambda value: kept.append(value), get=lambda reference: None
    )
    monkeypatch.setattr(driver_bytes, "ray", store)
    *_, compute, put, get, _ = shown(driver_bytes, "--rows", 4, "--tokens", 8, "--ranks", 2, "--store")
    assert [line[0] for line in (compute, put, get)] == ["compute", "put", "get"]
    assert all(float(line[1]) >= 0 for line in (compute, put, get)) and len(kept) > 2 * 8


def test_every_case_of_the_ppo_step_is_a_sound_configuration(tmp_path: Path) -> None:
    for case in ppo_step.CASES:
        config = ppo_step.validate(ppo_step.configuration(tmp_path, *case, steps=4))
        assert (config.dtype, config.rollout.max_response_tokens, config.ppo.epochs) == case


def test_the_benchmark_of_long_contexts(shown: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Inline:
        exitcode = 0

        def __init__(self, target: Callable[..., None], args: tuple[Any, ...]) -> None:
            self.start = lambda: target(*args)

        def join(self) -> None: ...

    context = SimpleNamespace(Queue=queue.Queue, Process=Inline)
    monkeypatch.setattr(long_context.multiprocessing, "get_context", lambda method: context)
    _, *rows = shown(long_context, "--tokens", 32, "--vocabulary", 128)
    assert [row[:2] for row in rows] == [
        [dtype, way] for dtype in ("float32", "bfloat16") for way in ("whole", "blocks")
    ]
    assert all(len(numbers(row)) == 4 for row in rows)


def test_the_benchmark_of_the_files_of_samples(shown: Callable[..., list[list[str]]]) -> None:
    _, *rows = shown(samples_written, "--rows", 4, "--tokens", 8)
    assert [row[:3] for row in rows] == [["4", "8", "default"], ["4", "8", "all"]]
    assert all(number >= 0 for row in rows for number in numbers(row)) and len(numbers(rows[0])) == 5


def test_the_benchmark_of_the_viewers_answers(shown: Callable[..., list[list[str]]]) -> None:
    _, *rows = shown(viewer_answers, "--samples", 40, "--steps", 1, 4, "--tokens", 8)
    assert [row[0] for row in rows] == ["1"] * 11 + ["4"] * 11
    assert all(len(numbers(row)) == 3 and min(numbers(row)) >= 0 for row in rows)


def test_what_a_run_does_between_its_steps(tmp_path: Path, shown: Callable[..., list[list[str]]]) -> None:
    """Two pauses of 20 ms, and one in which a checkpoint is begun; a step takes two seconds."""
    file = TraceFile(tmp_path / TRACE_FILE)
    for step in range(4):
        begin = step * 2.02e6
        for name, after, dur in (("generate", 0, 5e5), ("waits for actor", 1e5, 1e5), ("push", 1e6, 1e6)):
            file.append([{"ph": "X", "pid": 0, "tid": 0, "name": name, "ts": begin + after, "dur": dur}])
        file.append([{"ph": "X", "pid": 1, "tid": 0, "name": "generate", "ts": begin + 2e6, "dur": 1e3}])
    file.append([{"ph": "X", "pid": 0, "tid": 0, "name": "saving checkpoint 2", "ts": 2.02e6 + 2e6, "dur": 1.0}])
    file.close()
    (line,) = shown(between_steps, tmp_path)
    assert line[1:5] == ["20.0", "ms", "between", "2"] and line[-1] == "1.00%"


def test_the_benchmark_of_the_timeline(shown: Callable[..., list[list[str]]]) -> None:
    _, row = shown(timeline, "--ranks", 2, "--spans", 10)
    assert row[:2] == ["2", "10"] and len(numbers(row)) == 5 and all(number >= 0 for number in numbers(row))


def test_the_benchmark_of_the_plans_order(
    shown: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    """Runs that take what the plan without calibration says are in its order."""

    def run(file: str, overrides: list[str]) -> None:
        config = load_config(Path(file), overrides)
        planned = layout(config).step
        times = {f"time/{phase}_s": seconds for phase, seconds in planned.phases.items()}
        row = {**times, "time/step_s": planned.total, "lr/actor": 1e-3, "response/length_mean": 8.0}
        Path(config.run_dir).mkdir()
        Path(config.run_dir, "config.yaml").write_text(dump_config(config))
        Path(config.run_dir, "metrics.jsonl").write_text(f"{json.dumps(row)}\n" * config.steps)

    monkeypatch.setattr(plan_order, "run", run)
    models = [f"{role}.model.path={tiny}" for role in ("actor", "critic", "reward")]
    lines = shown(plan_order, "configs/tiny.yaml", *models, "--variants", 6)
    *rows, last = lines[lines.index(["predicted", "measured", "error", "by", "phase:", "predicted/measured"]) + 1 :]
    assert len(rows) == 6
    assert all(float(row[0]) > 0 and float(row[1]) > 0 for row in rows)
    assert float(last[-1]) > 0.9
    assert plan_order.rank_correlation([1.0, 2.0, 3.0], [9.0, 8.0, 1.0]) == pytest.approx(-1)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A policy of 0.1 million parameters."""
    from transformers import LlamaForCausalLM

    words = tokenizer()
    for part in (LlamaForCausalLM(model_config(words)), words):
        part.save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def test_the_benchmark_of_lora(
    shown: Callable[..., list[list[str]]], monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    class Here:
        def __init__(self, size: int) -> None:
            assert size == 1

        def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
            return [function(*arguments)]

        def close(self) -> None: ...

    monkeypatch.setattr(lora, "Ranks", Here)
    monkeypatch.setattr(lora.processes, "DEADLINE_S", lora.processes.DEADLINE_S)
    saved = lambda self, folder: (Path(folder) / "state").write_bytes(b"1")  # noqa: E731
    monkeypatch.setattr("roles.zero.sharded.ShardedModel.save_state", saved)
    with alone():
        rows = shown(lora, tiny, "--rank", 2)
    assert [" ".join(row).split(":")[0] for row in rows] == ["all weights", "LoRA 2", "reference"]
    assert all(numbers(row[row.index("peak") :])[0] > 0 for row in rows)


def whole(**arguments: Any) -> tuple[Any, ...]:
    """A rank alone under stage 3, which has nothing to shard: `ShardedModel` asks DeepSpeed's optimizer for a little
    more."""
    alone = PlainDeepSpeed(**arguments)
    alone.optimizer = alone.optimizer or SimpleNamespace()
    alone.optimizer.empty_partition_cache = lambda: None
    return alone, None, None, None


@contextmanager
def alone() -> Iterator[Seen]:
    """The stage for a rank without Ray."""
    with stage() as seen, pytest.MonkeyPatch.context() as patched:
        patched.setattr(PlainDeepSpeed, "initialize", whole)
        patched.setattr("roles.zero.sharded.gather_by_layer", lambda module: None)
        patched.setattr(torch.distributed, "broadcast_object_list", lambda *arguments, **options: None)
        patched.setattr(FakeLLM, "reset_prefix_cache", lambda llm: True, raising=False)
        yield seen


@pytest.mark.parametrize(("what", "tokens"), [("generate", 3), ("update", 8)])
def test_the_benchmark_of_a_card(
    what: str,
    tokens: int,
    shown: Callable[..., list[list[str]]],
    tmp_path: Path,
) -> None:
    """On the processor; what only a card can show is measured by `make bench-gpu`."""
    size = ["--rows", 4, "--tokens", tokens, "--shape", "tiny", "--device", "cpu"]
    with alone():
        *_, last = shown(gpu, what, tmp_path, *size)
    assert last[0] == "RESULT"
    result = json.loads(" ".join(last[1:]))
    assert result["card"] == "no card"
    found = (
        [result["tokens_per_s"], result["plain_vllm_tokens_per_s"]]
        if what == "generate"
        else result["seconds"].values()
    )
    assert all(value > 0 for value in found)


def test_the_load_on_a_served_policy(shown: Callable[..., list[list[str]]]) -> None:
    serving, letters = ServingConfig(port=0), Letters()
    reader = PromptReader(letters, 60, 40)  # type: ignore[arg-type]
    with (
        working(Desk(EchoEngines(), None, letters.decode, most=64)) as desk,
        listening(serving) as found,
        answering(policy_app(desk, reader, serving, Recovery(), temperature=1.0, top_p=1.0), found),
    ):
        (line,) = shown(serving_load, url_of(found))
    assert line[:3] == ["500", "x", "200;"] and float(line[4]) <= float(line[7])


def test_no_benchmark_is_left_out() -> None:
    names = [module.__name__ for module in globals().values() if isinstance(module, ModuleType)]
    elsewhere = {"soak.py", "remedies.py", "trl_step.py"}  # test_soak.py, test_remedies.py; started by ppo_step.py
    run = {f"{name.removeprefix(PACKAGE)}.py" for name in names if name.startswith(PACKAGE)} | elsewhere
    assert {file.name for file in FOLDER.glob("*.py")} == run
