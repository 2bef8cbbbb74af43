from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import orchestrator.run.checkpoint
from orchestrator.run.checkpoint import Checkpoints, trained_step
from roles.durable import hash_of


def write(text: str):
    def inner(folder: Path) -> None:
        (folder / "actor").mkdir()
        (folder / "actor" / "rank-0.pt").write_text(text)

    return inner


def test_newest_is_what_was_saved_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(2, {"kl": 0.1}, write("a"))
    checkpoints.save(10, {"kl": 0.2}, write("b"))
    newest = checkpoints.newest()
    assert (newest.step, newest.state) == (10, {"kl": 0.2})
    assert (newest.path / "actor" / "rank-0.pt").read_text() == "b"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {}, write("x"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]


def test_every_nth_and_the_best_stay_beside_the_newest(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    best = {1: [], 2: [2], 3: [2], 4: [2, 3], 5: [3, 5], 6: [3, 5], 7: [3, 7], 8: [9], 9: [1]}
    left = []
    for step, steps in best.items():
        checkpoints.save(step, {}, write("x"), steps)
        left.append(checkpoints.steps())
    assert left[2:5] == [[2, 3], [2, 3, 4], [3, 4, 5]], "step 1 is gone, then step 2, which is no longer among the best"
    assert left[5:] == [[3, 4, 5, 6], [3, 4, 6, 7], [4, 7, 8], [4, 8, 9]]
    for step in range(10, 21):
        checkpoints.save(step, {}, write("x"))
    assert checkpoints.steps() == [4, 8, 12, 16, 19, 20], "multiples of 4 are never removed"


def test_a_damaged_newer_one_does_not_push_out_what_was_just_saved(tmp_path: Path) -> None:
    """The run was resumed from before the damaged one, and has not come as far again."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(10, {}, write("x"))
    (tmp_path / "step-000010" / "actor" / "rank-0.pt").unlink()
    (tmp_path / "step-000009.partial").mkdir()
    saved = checkpoints.save(6, {}, write("y"))
    assert checkpoints.newest().path == saved
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000006", "step-000010"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncate", "rank-0.pt has 3 bytes, not 5"),
        ("remove", "rank-0.pt is missing"),
        ("manifest", "manifest.json cannot be read (JSONDecodeError)"),
        ("no manifest", "manifest.json cannot be read (FileNotFoundError)"),
        ("another format", "manifest.json is not of format 2; another version of Tetrarch has written it"),
        ("sizes only", "manifest.json has no hashes of the files; another version of Tetrarch has written it"),
    ],
)
def test_a_broken_checkpoint_is_passed_over(tmp_path: Path, damage: str, said: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, {}, write("whole"))
    broken = checkpoints.save(2, {}, write("whole"))
    file, manifest = broken / "actor" / "rank-0.pt", broken / "manifest.json"
    match damage:
        case "truncate":
            file.write_text("who")
        case "remove":
            file.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:20])
        case "no manifest":
            manifest.unlink()
        case "another format":
            manifest.write_text(manifest.read_text().replace('"format": 2,', ""))
        case "sizes only":
            manifest.write_text(json.dumps({"step": 2, "state": {}, "files": {"actor/rank-0.pt": 5}}))
    assert checkpoints.newest().step == 1
    ((folder, what),) = checkpoints.damaged().items()
    assert folder.name == "step-000002" and what.endswith(said)


@pytest.mark.parametrize(
    "manifest",
    [
        *("[]", "null", "1", "{}", "[" * 100_000, '{"step": 2}', '{"step": 2, "state": {}}'),
        *(json.dumps({"step": step, "state": {}, "files": {}}) for step in (-1, "2", None, 1.5)),
        *(json.dumps({"step": 2, "state": state, "files": files}) for state, files in [([], {}), ({}, []), (None, {})]),
        json.dumps({"step": 2, "state": {}, "files": {"a\0b": {"bytes": 1, "xxh3_128": "x"}}}),
        json.dumps({"step": 2, "state": {}, "files": {"x" * 5000: {"bytes": 1, "xxh3_128": "x"}}}),
        json.dumps({"step": 2, "state": {}, "files": {"a": {"size": 1}}}),
        json.dumps({"step": 2, "state": {}, "files": {"a": []}}),
    ],
)
def test_a_manifest_of_something_else_is_no_whole_checkpoint(tmp_path: Path, manifest: str) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, {}, write("whole"))
    (checkpoints.save(2, {}, write("whole")) / "manifest.json").write_text(manifest)
    for content in (False, True):
        assert checkpoints.newest(content=content).step == 1 and checkpoints.of_step(2, content=content) is None
    assert checkpoints.steps() == [1]
    assert [folder.name for folder in checkpoints.damaged()] == ["step-000002"]


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{}", b'{"step": "2"}', b"[" * 100_000, b"\xff"])
def test_a_trained_policy_that_does_not_say_its_step_has_none(tmp_path: Path, content: bytes) -> None:
    assert trained_step(tmp_path) is None
    (tmp_path / "actor").mkdir()
    file = tmp_path / "actor" / "tetrarch.json"
    file.write_text('{"step": 2}')
    assert trained_step(tmp_path) == 2
    file.write_bytes(content)
    assert trained_step(tmp_path) is None


def flip(file: Path) -> None:
    """One bit of a file is another one; its size and time stay."""
    data, facts = bytearray(file.read_bytes()), file.stat()
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.mark.parametrize("damage", [flip, lambda file: file.write_bytes(bytes(5))], ids=["one bit", "zeros"])
def test_other_bytes_of_the_right_size_are_named_and_passed_over(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    checkpoints.save(1, {}, write("whole"))
    broken = checkpoints.save(2, {}, write("whole"))
    assert checkpoints.newest(content=True).step == 2 and checkpoints.damaged() == {}
    damage(broken / "actor" / "rank-0.pt")
    assert checkpoints.newest(content=True).step == 1 and checkpoints.of_step(2, content=True) is None
    assert "actor/rank-0.pt holds other bytes than were written" in checkpoints.damaged()[broken]
    assert list(checkpoints.damaged(after=1)) == [broken] and checkpoints.damaged(after=2) == {}


def test_ctrl_c_does_not_wait_until_large_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints, read = Checkpoints(tmp_path, keep=3), threading.Event()
    checkpoints.save(1, {}, write("large"))
    monkeypatch.setattr(orchestrator.run.checkpoint, "hash_of", lambda file: str(read.wait(20)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            checkpoints.newest(content=True)  # else it ends after 20 s, without an error
    finally:
        signal.signal(signal.SIGINT, before)
        read.set()


def test_hashes_that_the_ranks_tell_are_those_of_what_they_meant_to_write(tmp_path: Path) -> None:
    """A disk that has stored other bytes is found out; without a word from the ranks they would be taken as right."""

    def told(folder: Path) -> dict[str, str]:
        write("meant")(folder)
        found = hash_of(folder / "actor" / "rank-0.pt")
        flip(folder / "actor" / "rank-0.pt")
        return {"actor/rank-0.pt": found}

    checkpoints = Checkpoints(tmp_path, keep=3)
    saved = checkpoints.save(1, {}, told)
    assert "holds other bytes" in checkpoints.damaged()[saved]


def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    sync, rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        log.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        log.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    Checkpoints(tmp_path, keep=1).save(1, {}, write("x"))
    before = log[: log.index("rename")]
    assert {"rank-0.pt", "manifest.json", "actor", "step-000001.partial"} == set(before)
    assert log[log.index("rename") :] == ["rename", tmp_path.name]


def test_a_checkpoint_that_was_begun_makes_room_for_the_next(tmp_path: Path) -> None:
    """Of another step too: on a full disk none would ever be whole again."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    (checkpoints.begin(50) / "half").write_text("half")
    assert checkpoints.begin(45).is_dir()
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000045.partial"]


def test_a_step_that_is_saved_again_leaves_nothing_of_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    for text in ("first", "second"):
        checkpoints.save(1, {}, write(text))
    assert [folder.name for folder in tmp_path.iterdir()] == ["step-000001"]
    assert (tmp_path / "step-000001/actor/rank-0.pt").read_text() == "second"


def test_a_save_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(1, {}, write("whole"))

    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoints.save(2, {}, fail)
    assert checkpoints.newest().step == 1
    checkpoints.save(2, {}, write("again"))
    assert checkpoints.newest().step == 2


def test_a_folder_without_checkpoints_has_no_newest_one(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", keep=1).newest() is None


def test_a_copy_that_the_user_has_made_is_left_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    shutil.copytree(checkpoints.save(1, {}, write("x")), tmp_path / "step-000001-good")
    newest = checkpoints.save(2, {}, write("x"))
    assert (checkpoints.steps(), checkpoints.newest().path) == ([2], newest)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001-good", "step-000002"]


def test_the_newest_is_that_of_the_largest_step(tmp_path: Path) -> None:
    """Names of six digits are only in order up to a million."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (999_999, 1_000_000):
        checkpoints.save(step, {}, write("x"))
    assert checkpoints.newest().step == 1_000_000 and checkpoints.steps() == [999_999, 1_000_000]
