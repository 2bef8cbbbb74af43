"""The loop of a pipeline, with commands that are small scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.errors import Terminated
from orchestrator.errors import TetrarchError
from orchestrator.run.checkpoint import Checkpoints
from orchestrator.run.pipeline_stages import PipelineStage
from orchestrator.run.pipeline_state import PipelineState
from orchestrator.stages import own_process
from orchestrator.stages import pipeline as loop
from tests.unit.orchestrator.pipelines import SmallPipeline

MAKES = """
import pathlib, sys
print(*sys.argv[2:], file=open("started.txt", "a"))
for place in sys.argv[1].split(","):
    path = pathlib.Path(place)
    (path.parent if path.suffix else path).mkdir(parents=True, exist_ok=True)
    (path if path.suffix else path / "weights").write_text("made")
"""


class World:
    """The small pipeline, run with a script in place of `tetrarch`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pipeline, self.told, self.programs = SmallPipeline(folder), list[str](), dict[str, str]()
        self.out = folder / "out"
        self.out.mkdir()
        monkeypatch.setattr(loop, "command_of", self._words)

    def _words(self, stage: PipelineStage, flags: Sequence[str]) -> list[str]:
        program = self.programs.get(stage.name, MAKES)
        return [sys.executable, "-c", program, ",".join(map(str, stage.made)), stage.command, *flags]

    def run(self) -> PipelineState:
        state = PipelineState.read(self.out)
        loop.run_stages(self.pipeline.stages(), state, self.out, self.told.append)
        return state

    @property
    def started(self) -> list[str]:
        """What was started since the last look."""
        file = self.pipeline.folder / "started.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, monkeypatch)


def test_stages_run_in_order_and_are_skipped_once_they_are_done(world: World) -> None:
    state = world.run()
    assert world.started == ["sft", "dpo", "evaluate"] and all(record.done for record in state.stages.values())
    world.told.clear()
    world.run()
    assert world.started == [] and [" skipped; " in line for line in world.told] == [True] * 3
    assert "stage 1/3 sft: skipped; sft/model is there" in world.told[0]


def test_a_changed_stage_sets_aside_what_it_had_made(world: World) -> None:
    world.run()
    world.pipeline.data["dpo"]["epochs"] = 2
    world.told.clear()
    world.run()
    assert world.started[-2:] == ["dpo", "evaluate"]
    assert any("dpo.epochs: 1 → 2" in line for line in world.told)
    assert Path("dpo/model.before-1/weights").is_file() and Path("dpo/model/weights").is_file()
    assert not Path("sft/model.before-1").exists()


def test_a_stage_that_fails_is_named_and_goes_on_from_its_checkpoint(world: World) -> None:
    world.programs["dpo"] = "import sys; sys.exit(1)"
    with pytest.raises(TetrarchError, match=r"stage dpo \(tetrarch dpo .*\) ended with exit code 1"):
        world.run()
    assert world.started == ["sft"]
    world.programs.clear()
    Checkpoints(Path("dpo/model-run/checkpoints"), keep=1).save(4, {}, lambda folder: None)
    world.run()
    assert world.started == ["dpo --resume", "evaluate"]


def test_an_ensemble_that_was_interrupted_goes_on_from_the_checkpoints_of_its_members(world: World) -> None:
    data = world.pipeline.data
    pairs = {"type": "dataset", "dataset": {"path": "pairs.jsonl"}}
    ensemble = {"output": "rm", "model": {"path": "base"}, "pairs": pairs, "ensemble": {"members": 2}}
    data |= {"reward_training": ensemble}
    data["pipeline"] = {"output": "out", "stages": {"rm": {"command": "reward"}}}
    world.programs["rm"] = "import sys; sys.exit(1)"
    with pytest.raises(TetrarchError, match="stage rm"):
        world.run()
    world.programs.clear()
    Checkpoints(Path("rm/member-1-run/checkpoints"), keep=1).save(4, {}, lambda folder: None)
    world.run()
    assert world.started == ["reward --resume"]


def test_without_a_checkpoint_an_interrupted_training_begins_anew(world: World) -> None:
    world.programs["dpo"] = (
        "import os, signal; os.makedirs('dpo/model-run'); open('dpo/model-run/run.json', 'w').write('x')"
    )
    world.programs["dpo"] += "; os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(TetrarchError, match=r"stage dpo .* was killed by signal 9 \(SIGKILL\)"):
        world.run()
    world.programs.clear()
    world.run()
    assert world.started[-2:] == ["dpo", "evaluate"] and Path("dpo/model-run.before-1/run.json").is_file()


def test_another_configuration_does_not_go_on_from_an_interrupted_one(world: World) -> None:
    world.programs["sft"] = "import sys; sys.exit(1)"
    with pytest.raises(TetrarchError):
        world.run()
    world.programs.clear()
    Checkpoints(Path("sft/model-run/checkpoints"), keep=1).save(4, {}, lambda folder: None)
    world.pipeline.data["sft"]["epochs"] = 2
    world.run()
    assert world.started[0] == "sft" and Path("sft/model-run.before-1/checkpoints").is_dir()


def test_a_command_that_leaves_nothing_has_failed(world: World) -> None:
    world.programs["sft"] = "pass"
    with pytest.raises(TetrarchError, match="stage sft has ended without an error, but sft/model is not there"):
        world.run()


def test_a_file_that_is_changed_meanwhile_is_not_half_used(world: World) -> None:
    world.programs["sft"] = MAKES + "open('pipeline.yaml', 'a').write(' ')"
    with pytest.raises(TetrarchError, match=r"pipeline\.yaml has changed since the pipeline began"):
        world.run()
    assert world.started == ["sft"]
    world.programs.clear()
    world.run()
    assert world.started == ["dpo", "evaluate"]


def test_sigterm_is_passed_on_and_waits_for_the_stage(world: World) -> None:
    """The stage hears it once, in its own time, and the state says that it was under way."""
    world.programs["dpo"] = (
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (open('heard.txt', 'a').write('x'), sys.exit(143)))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    with pytest.raises(Terminated, match="the stage dpo was under way"):
        world.run()
    assert Path("heard.txt").read_text() == "x"
    state = PipelineState.read(world.out)
    assert state.stages["sft"].done and not state.stages["dpo"].done and "measured" not in state.stages


def test_a_stage_ends_when_its_pipeline_is_killed(tmp_path: Path) -> None:
    child = "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: (open('ended.txt', 'w'), sys.exit()))\n"
    child += "print('up', flush=True)\ntime.sleep(200)\n"
    parent = (
        "import os, signal, subprocess, sys\nfrom orchestrator.stages.own_process import ends_with\n"
        f"with subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True, stdout=subprocess.PIPE,"
        " preexec_fn=ends_with(os.getpid())) as process:\n"
        "    process.stdout.readline()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[4])}
    done = subprocess.run([sys.executable, "-c", parent], cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    until = time.monotonic() + 60
    while not (tmp_path / "ended.txt").exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_stage_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_process, "END_S", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"\n"
    own_process.end_process(process)
    assert process.returncode == -signal.SIGKILL
